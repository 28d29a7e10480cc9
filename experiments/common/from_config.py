"""Objects of a `train` config: problem, estimator, optimizer; its identity, folder and run."""

import inspect
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.common import budget, problems, settings
from experiments.common.problems import problem
from fwdgrad import Activities, check_examples_independent
from fwdgrad.records import (
    RecordError,
    RunRecord,
    config_identity,
    read_info,
    records_of,
    run_folder,
    with_changed_settings,
)
from fwdgrad.training import (
    DivergedError,
    Programs,
    Settings,
    finished_run,
    first_examples,
    guided_optimizer,
    is_loader,
    train_together,
)

_SOURCES = (Path(__file__),)  # of a run's code, besides fwdgrad
SETTINGS = ("num_steps", "batch_size", "eval_every", "steps_per_call", "compiler_options")


def run(cfg: DictConfig) -> RunRecord:
    """Run a composed `train` config, resume it, or return its finished run; errors as `run_seeds`.

    Raises:
      DivergedError: a loss is not finite.
    """
    (found,) = run_seeds([cfg])
    if isinstance(found, DivergedError):
        raise found
    return found


def run_seeds(cfgs: Sequence[DictConfig]) -> Iterator[RunRecord | DivergedError]:
    """Run `train` configs that differ in their seeds alone; yield the record or error of each.

    A run that is not recorded is trained when its result is asked for; with `output.together` all
    that are left are trained then, in one program (`fwdgrad.training.train_together`).

    Raises:
      ValueError: a key has a wrong value, or nothing reads it, or the configs differ in more.
    """
    for cfg in cfgs:
        settings.check(cfg, "train")
        if identity_config(cfg) != identity_config(cfgs[0]):
            raise ValueError("cfgs must differ in their seeds alone; found others.")
    found: dict[int, RunRecord | DivergedError] = {}
    for i, cfg in enumerate(cfgs):
        if cfg.seed not in found and (record := _finished(cfg)) is not None:
            found[cfg.seed] = record
        if cfg.seed not in found:
            together = cfgs[i:] if cfg.output.get("together") else [cfg]
            found |= _train([x for x in together if _finished(x) is None])
        yield found[cfg.seed]


def _train(cfgs: Sequence[DictConfig]) -> dict[int, RunRecord | DivergedError]:
    """Return the results of configs that differ in their seeds alone, by seed."""
    cfg = cfgs[0]
    value_and_grad, transformation, rate = estimator(cfg), optimizer(cfg), _learning_rate(cfg)
    if "space" in cfg.estimator.value_and_grad:
        check_examples(cfg)
    budget.present().claim()
    shared = _shared(json.dumps(with_changed_settings(identity_config(cfg))))
    shared[:] = shared or [Programs(), problem(cfg), value_and_grad, transformation]
    programs, made, value_and_grad, transformation = shared
    return train_together(
        made, value_and_grad, transformation, rate if callable(rate) else lambda step: rate,
        _settings(cfg), {x.seed: (folder(x), OmegaConf.to_yaml(x, resolve=True)) for x in cfgs},
        checkpoint_seconds=cfg.output.checkpoint_seconds, show_progress=cfg.output.progress,
        sources=_SOURCES, accept_other_code=cfg.output.accept_other_code,
        read_test_set=cfg.read_test_set, programs=programs,
    )  # fmt: skip


def _settings(cfg: DictConfig) -> Settings:
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return Settings(**{key: config[key] for key in SETTINGS})


@lru_cache(maxsize=16)  # the lines of figures 3 to 5 are 12
def _shared(identity: str) -> list[Any]:
    """Return what runs that differ in their seeds share; empty until the first of them fills it."""
    return []


def _finished(cfg: DictConfig) -> RunRecord | DivergedError | None:
    """Return the finished run of a config, of this platform or of one in `output.runs_of`."""
    known: dict[str, Any] = {"settings": _settings(cfg), "sources": _SOURCES}
    try:
        with records_of(_recorded_platform(cfg)):
            record = finished_run(folder(cfg), seed=cfg.seed, **known)
    except DivergedError as error:
        return error
    if record is not None and cfg.read_test_set and "test_loss" not in record.info["final"]:
        raise RecordError(
            f"the run in {record.folder} has not read the test set, since it chose a learning "
            "rate (read_test_set=false). Train another seed, or delete the folder."
        )
    return record


def _recorded_platform(cfg: DictConfig) -> str | None:
    """Return the platform of the run to read back, this one's first; None for this one."""
    for platform in (None, *cfg.output.runs_of):
        with records_of(platform):
            info = read_info(folder(cfg))
        if info is not None and info["status"] != "running":
            return platform
    return None


def check_examples(cfg: DictConfig) -> None:
    """Raise ValueError if examples change each other's loss and the space is `Activities`."""
    if isinstance(instantiate(cfg.estimator.value_and_grad.space), Activities):
        made = problem(cfg)
        examples = made.train
        if is_loader(examples):
            examples = first_examples(examples, cfg.batch_size)
        else:  # spread, since they may be sorted by class
            examples = jax.tree.map(
                lambda x: x[:: max(1, len(x) // cfg.batch_size)][: cfg.batch_size], examples
            )
        check_examples_independent(made.loss, made.init(jax.random.key(cfg.seed)), examples)


def recorded_info(cfg: DictConfig) -> dict[str, Any]:
    """Return the content of a run's `run.json`, also of a run that diverged."""
    with records_of(_recorded_platform(cfg)):
        info = read_info(folder(cfg))
    if info is None:
        raise RecordError(f"{folder(cfg)} has lost its run.json. Start the command once more.")
    return info


def summary(record: RunRecord) -> str:
    """Describe a finished run in one line."""
    final = record.info["final"]
    label = record.folder.parent.name.rpartition("-")[0]
    accuracies = [
        f", {name} accuracy {value:.4f}"
        for name in ("valid", "test")
        if not math.isnan(value := float(final.get(f"{name}_accuracy", "nan")))
    ]
    return (
        f"{label} seed {record.info['seed']}: {final['step']} steps in {final['seconds']:.1f} s, "
        f"train loss {final['train_loss']:.4f}, valid loss {final['valid_loss']:.4f}"
        f"{''.join(accuracies)}"
    )


def folder(cfg: DictConfig) -> Path:
    """Return the folder of a run, named after its choices, its identity and its seed.

    Settings of JAX that decide numbers are part of the name if they are not JAX's own.
    """
    identity = config_identity(with_changed_settings(identity_config(cfg)))
    return run_folder(settings.root(cfg), label(cfg), identity, cfg.seed)


def label(cfg: DictConfig) -> str:
    """Return the choices: model, estimator; data set and optimizer if they are not the default."""
    groups, read = {"make_model": "model", "dataset": "dataset"}, problems.reads(cfg)
    chosen = [cfg[group].name for argument, group in groups.items() if argument in read]
    first = [] if problems.is_default(cfg) else [problems.name(cfg)]
    names = [*first, *chosen, cfg.estimator.label, *_optimizer_names(cfg)]
    return "-".join(name for name in names if name != "mnist")


def _optimizer_names(cfg: DictConfig) -> list[str]:
    """Return the names of the optimizer and its schedule; none for the defaults."""
    rate = cfg.optimizer.get("learning_rate")
    schedule = rate.get("_target_") if isinstance(rate, DictConfig) else "constant"
    short = {"optax.sgd": "", "fwdgrad.training.exponential_decay": "",
             "optax.cosine_decay_schedule": "cosine"}  # fmt: skip
    names = (short.get(x, str(x).rpartition(".")[2]) for x in (cfg.optimizer._target_, schedule))
    return [name for name in names if name]


def identity_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the part of a config that decides a run's numbers: all but the seed and the names."""
    config: Any = settings.canonical(OmegaConf.to_container(cfg, resolve=True))
    read = problems.reads(cfg)
    return {
        **({} if problems.is_default(cfg) else {"problem": config["problem"]}),
        **({"model": config["model"]["make"]} if "make_model" in read else {}),
        **({"dataset": config["dataset"]} if "dataset" in read else {}),
        "estimator": config["estimator"]["value_and_grad"],
        "optimizer": config["optimizer"],
        **{k: x for k, x in config["estimator"].items() if k in ("guess_rate", "feedback")},
        **{key: config[key] for key in SETTINGS},
    }


def estimator(cfg: DictConfig) -> Any:
    """Return the estimator of a `train` config: loss, has_report=... -> value and gradient.

    Raises:
      ValueError: the estimator does not read a chosen group, or an argument is wrong.
    """
    arguments = inspect.signature(get_object(cfg.estimator.value_and_grad._target_)).parameters
    unread = [x for x in ("tangents", "space", "aggregation") if x in cfg and x not in arguments]
    _check_choices(cfg, unread)
    with settings.named("estimator.value_and_grad"):
        made = instantiate(cfg.estimator.value_and_grad, _convert_="all")
        can_be_guided = hasattr(made(lambda params: params), "guided")
    if not can_be_guided and ("guess" in cfg or "guess_rate" in cfg.estimator):
        _check_choices(cfg, ["guess"])
    if cfg.estimator.get("guess_rate") is None:
        return made
    if (feedback := cfg.estimator.get("feedback")) is not None:
        if not isinstance(space := made.keywords.get("space"), Activities):
            raise ValueError(f"guess={cfg.guess.name} needs activities. Say space=activities.")
        made = partial(made, space=replace(space, feedback=feedback))

    @wraps(made.func)
    def guided(loss: Any, **options: Any) -> Any:
        return made.func(loss, **options).guided()

    return partial(guided, **made.keywords)


def _check_choices(cfg: DictConfig, unread: list[str]) -> None:
    if unread:
        groups, name = ", ".join(unread), cfg.estimator.name
        chosen = (f"{x}={cfg[x].name}" if x in cfg else "estimator.guess_rate" for x in unread)
        raise ValueError(
            f"estimator={name} takes no choice of {groups}. Leave out {', '.join(chosen)}, or say "
            "estimator=forward."
        )


def optimizer(cfg: DictConfig) -> optax.GradientTransformation:
    """Return the optimizer of a `train` config, with that of a guess if it has one.

    Raises:
      ValueError: the optimizer cannot make a step.
    """
    rate = _learning_rate(cfg)
    with settings.named("optimizer"):
        made = instantiate(cfg.optimizer, learning_rate=rate, _convert_="all")
        jax.eval_shape(partial(_any_step, made))
    guess_rate = cfg.estimator.get("guess_rate")
    return made if guess_rate is None else guided_optimizer(made, guess_rate)


def _any_step(transformation: optax.GradientTransformation) -> Any:
    params = jnp.zeros((2, 2))
    full = optax.with_extra_args_support(transformation)
    return full.update(params, full.init(params), params, value=jnp.zeros(()))


def _learning_rate(cfg: DictConfig) -> Any:
    """Return a number, or a function of the step.

    Raises:
      ValueError: a schedule is constant over the run, and its config does not say so.
    """
    rate = cfg.optimizer.learning_rate
    if not isinstance(rate, DictConfig):
        return rate
    with settings.named("optimizer.learning_rate"):
        schedule = instantiate(rate, _convert_="all")
        is_constant = rate._target_ == "optax.constant_schedule" or rate.get("rate") == 0
        rates = jax.vmap(schedule)(jnp.arange(cfg.num_steps + 1))
        # As optax's are with transition_steps=0, without an error.
        if not is_constant and (rates == rates[0]).all():
            raise ValueError(
                f"{rate._target_} is {rates[0]:g} at all steps from 0 to {cfg.num_steps}. Give it "
                "arguments with which it changes in this run (steps count updates), or, for a "
                "constant rate, a number: optimizer.learning_rate=NUMBER."
            )
    return schedule
