"""Trains one model with one estimator: python -m experiments.train model=mlp estimator=forward

Any key of configs/train.yaml can be set on the command line, and `-m` makes a sweep of lists:

    python -m experiments.train -m seed=0,1,2 estimator=forward,backprop num_steps=2000

A run that was interrupted goes on when it is started again; a finished one is not repeated.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import optax
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments import commands
from fwdgrad import Activities, check_examples_independent
from fwdgrad.problems import Problem, image_classification, load_dataset
from fwdgrad.work import (
    GuidedProblem,
    RecordError,
    RunRecord,
    Settings,
    TrainableProblem,
    config_identity,
    finished_run,
    guided_optimizer,
    run_folder,
    train,
)
from fwdgrad.work.jax_settings import with_changed_settings
from fwdgrad.work.records import read_info
from fwdgrad.work.stepping import Batches, make_stepper

_SOURCES = (Path(__file__),)  # of a run's code, besides fwdgrad
SETTINGS = ("num_steps", "batch_size", "eval_every", "steps_per_call", "compiler_options")
# Of each part of a config all keys that anything reads; the options of what is made are further in.
_KEYS = {
    "": {
        "model", "dataset", "estimator", "tangents", "space", "aggregation", "guess", "optimizer",
        "seed", "learning_rate", "output", *SETTINGS,
    },
    "model": {"name", "make", "learning_rate", "steps_per_call", "compiler_options"},
    "dataset": {"name", "folder"},
    "estimator": {"name", "label", "value_and_grad", "guess_rate"},
    "tangents": {"name", "distribution"},
}  # fmt: skip
_FURTHER_IN = "estimator.value_and_grad, tangents.distribution, model.make or optimizer"


def run(cfg: DictConfig) -> RunRecord:
    """Runs a composed `train` config, or goes on with it, or returns what is already there.

    Raises:
      ValueError: a key was added that nothing reads.
    """
    _check_keys(cfg)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = Settings(**{key: config[key] for key in SETTINGS})
    known: dict[str, Any] = {"seed": cfg.seed, "settings": settings, "sources": _SOURCES}
    if (record := finished_run(folder(cfg), **known)) is not None:
        return record
    if "space" in cfg.estimator.value_and_grad:
        _check_examples(cfg)
    rate = _learning_rate(cfg)
    return train(
        problem(cfg),
        estimator(cfg),
        optimizer(cfg),
        rate if callable(rate) else lambda step: rate,
        settings,
        seed=cfg.seed,
        folder=folder(cfg),
        config=OmegaConf.to_yaml(cfg, resolve=True),
        checkpoint_seconds=cfg.output.checkpoint_seconds,
        show_progress=cfg.output.progress,
        sources=_SOURCES,
        accept_other_code=cfg.output.accept_other_code,
    )


def _check_examples(cfg: DictConfig) -> None:
    """Raise ValueError if examples change each other's loss, where the space asks that they not."""
    if isinstance(instantiate(cfg.estimator.value_and_grad.space), Activities):
        made = _plain_problem(cfg)
        examples = jax.tree.map(lambda x: x[:: max(1, len(x) // 8)][:8], made.train)
        check_examples_independent(made.loss, made.init(jax.random.key(cfg.seed)), examples)


def _check_keys(cfg: DictConfig) -> None:
    for part, known in _KEYS.items():
        found: Any = cfg[part] if part else cfg
        if unknown := sorted(set(found) - known):
            path = f"{part}.{unknown[0]}" if part else unknown[0]
            raise ValueError(
                f"nothing reads the key {path}. If it is an option of a constructor, it belongs "
                f"under {_FURTHER_IN}; what there is shows --cfg job."
            )


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The information of a run that was begun, also of one that diverged."""
    info = read_info(folder(cfg))
    if info is None:
        raise RecordError(f"{folder(cfg)} has lost its run.json. Start the command once more.")
    return info


def summary(record: RunRecord) -> str:
    """A finished run in one line."""
    final = record.info["final"]
    label = record.folder.parent.name.rpartition("-")[0]
    return (
        f"{label} seed {record.info['seed']}: {final['step']} steps in {final['seconds']:.1f} s, "
        f"train loss {final['train_loss']:.4f}, valid loss {final['valid_loss']:.4f}, "
        f"valid accuracy {final['valid_accuracy']:.4f}, test accuracy {final['test_accuracy']:.4f}"
    )


def folder(cfg: DictConfig) -> Path:
    """Where a run is recorded: named after model, estimator, what decides the numbers, and seed.

    Settings of JAX that decide numbers change the name, where they are not JAX's own.
    """
    label = f"{cfg.model.name}-{cfg.estimator.label}"
    identity = config_identity(with_changed_settings(identifying(cfg)))
    return run_folder(cfg.output.root, label, identity, cfg.seed)


def identifying(cfg: DictConfig) -> dict[str, Any]:
    """The part of a config that decides a run's numbers: all but the seed and the names."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        "model": config["model"]["make"],
        "dataset": config["dataset"],
        "estimator": config["estimator"]["value_and_grad"],
        "optimizer": config["optimizer"],
        **{key: config["estimator"][key] for key in ("guess_rate",) if key in config["estimator"]},
        **{key: config[key] for key in SETTINGS},
    }


def estimator(cfg: DictConfig) -> Any:
    """The estimator of a `train` config: loss function, has_report=... -> value and gradient.

    Raises:
      ValueError: it has a space, an aggregation or a guess, and is not the forward gradient.
    """
    made, name = cfg.estimator, cfg.estimator.name
    chosen = {
        "space": "space" in made.value_and_grad,
        "aggregation": "aggregation" in made.value_and_grad,
        "guess": made.get("guess_rate") is not None,
    }
    if name != "forward" and any(chosen.values()):
        groups = ", ".join(group for group, is_chosen in chosen.items() if is_chosen)
        raise ValueError(
            f"estimator={name} takes no choice of {groups}: that is of estimator=forward. "
            f"Leave it out, or say estimator=forward."
        )
    return instantiate(cfg.estimator.value_and_grad, _convert_="all")


def optimizer(cfg: DictConfig) -> optax.GradientTransformation:
    """The optimizer of a `train` config, that of a guess included if it has one."""
    made = instantiate(cfg.optimizer, learning_rate=_learning_rate(cfg), _convert_="all")
    rate = cfg.estimator.get("guess_rate")
    return made if rate is None else guided_optimizer(made, rate)


def _learning_rate(cfg: DictConfig) -> Any:
    """A number, or a function of the step."""
    rate = cfg.optimizer.learning_rate
    return instantiate(rate) if isinstance(rate, DictConfig) else rate


class Training:
    """A training that can be taken further step by step, and is not recorded.

    Args:
      cfg: a `train` config.
      init: key -> the first parameters; None: those of the config's problem.
      transformation: the optimizer; None: that of the config.

    Attributes:
      state: as `fwdgrad.work.stepping` has it.
    """

    def __init__(self, cfg: DictConfig, init: Any = None, transformation: Any = None):
        made = problem(cfg)
        self._examples, self._capacity = made.train, cfg.steps_per_call
        stepper = make_stepper(
            made.loss, init or made.init, made.train, estimator(cfg),
            transformation or optimizer(cfg), seed=cfg.seed,
            batch_size=cfg.batch_size, steps_per_call=cfg.steps_per_call,
            compiler_options=cfg.compiler_options,
        )  # fmt: skip
        self.state, self._advance = stepper.state, stepper.advance
        number = jax.tree.leaves(made.train)[0].shape[0]
        self._batches, self._step = Batches(number, cfg.batch_size, cfg.seed), 0

    def advance(self, num_steps: int) -> Any:
        """Makes so many steps, and returns the last loss."""
        for first in range(0, num_steps, self._capacity):
            count = min(self._capacity, num_steps - first)
            indices = self._batches.indices(self._step, count, capacity=self._capacity)
            self.state = self._advance(self.state, self._examples, indices, count)
            self._step += count
        return self.state.loss


def problem(cfg: DictConfig) -> TrainableProblem:
    """The problem of a `train` config; its data are those from before if nothing has changed."""
    plain = _plain_problem(cfg)
    if cfg.estimator.get("guess_rate") is None:
        return plain
    return GuidedProblem(plain, estimator(cfg)(plain.loss).guide, cfg.batch_size)


def _plain_problem(cfg: DictConfig) -> Problem:
    make = OmegaConf.to_yaml(cfg.model.make, resolve=True)
    return _problem(make, cfg.dataset.name, cfg.dataset.folder)


@lru_cache(maxsize=1)
def _problem(make: str, dataset: str, folder: str | None) -> Problem:
    make_model = instantiate(OmegaConf.create(make), _convert_="all")
    return image_classification(make_model, load_dataset(dataset, folder))


@commands.printable
def command(cfg: DictConfig) -> None:
    record = run(cfg)
    print(f"{summary(record)}\nrecorded in {record.folder}")


if __name__ == "__main__":
    commands.start("experiments.train", "train")
