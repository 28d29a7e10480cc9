"""Experiments on a problem of the user's own, in the place of the paper's models.

`own` of a `reproduce` config are overrides of train.yaml that every run gets:

    python -m experiments.cost.step_cost preset=quick output.root=results/mine \
        'own=["problem._target_=my_package.my_module.make_problem","batch_size=32"]'

Panels give way to one of this problem, and the lines' choices of a model or data set are dropped.
Lines that the problem cannot use are left out, with the reason.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
from omegaconf import DictConfig, OmegaConf

from experiments.common import from_config, jobs, problems
from fwdgrad.training import first_examples

PANEL = "own"
_MODELS = ("model=", "model.", "+model.", "dataset=", "dataset.")  # overrides that are dropped
_NO_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
_ROUNDS = 9  # turns in a process
_ROWS = 40  # evaluations of a run
# The experiments that have no problem of `train`, and the reason.
_OTHERS = {
    "trajectories": "it minimises test functions of two variables",
    "depth_scaling": "it makes networks of one layer to a hundred",
    "scaling_laws": "it makes MLPs of many widths and depths",
    "perturbed_weights": "its control and its law are of the MLP",
    "small_rates": "it explains a figure of the paper",
    "differentiation": "it compares ways to a derivative on functions of its own",
    **dict.fromkeys(
        ("sum_race", "sum_race_long", "sum_race_shifted", "sum_race_deep", "sum_race_cnn"),
        "its problem is the sum of two digits (run accuracy_race)",
    ),
    "cnn_race_long": "it is about the paper's CNN (run cnn_race)",
}


def adapted(cfg: DictConfig, names: Iterable[str]) -> DictConfig:
    """Return a `reproduce` config whose experiments are on the problem that `own` names.

    Args:
      cfg: the config; without `own` it is returned as it is.
      names: the experiments that will run.

    Raises:
      ValueError: an experiment has no problem of `train`, the folder is that of a preset, or no
        line can use the problem.
    """
    if not cfg.own:
        return cfg
    for name in names:
        if name in _OTHERS:
            raise ValueError(
                f"own: {name} cannot use a problem of your own: {_OTHERS[name]}. Leave own out, or "
                f"name other experiments: shown=[{', '.join(_ADAPT)}]."
            )
    if cfg.output.root == f"results/{cfg.preset}":
        raise ValueError(
            "own needs a folder of its own, or its tables would replace those of the paper's "
            "models. Say output.root=results/NAME."
        )
    cfg, own = copy.deepcopy(cfg), jobs.to_plain(cfg.own)
    OmegaConf.set_struct(cfg, False)
    cfg.expected_seconds = {}  # those of the preset are of the paper's models
    for name in names:
        _ADAPT[name](cfg, cfg.experiments[name], own)
    return cfg


def _step_cost(cfg: DictConfig, experiment: DictConfig, own: list[str]) -> None:
    train = jobs.compose_train(cfg, own)
    forms = [
        {"steps_per_call": steps, "compiler_options": options}
        for steps in dict.fromkeys((train.steps_per_call, 1))
        for options in (None, _NO_YNN)
    ]
    panel: dict[str, Any] = {
        "title": f"{problems.name(train)}, minibatch {train.batch_size}",
        "paper": None,
        "without": [],
        "rounds": _ROUNDS,
        "forms": {"cpu": forms, "other": forms[:1]},
    }
    _one_panel(experiment, own, panel)
    _keep_usable(cfg, experiment, "step_cost", {k: [*own, *x] for k, x in experiment.lines.items()})


def _learning_curves(cfg: DictConfig, experiment: DictConfig, own: list[str]) -> None:
    train = jobs.compose_train(cfg, own)
    panel = {
        "title": problems.name(train),
        "num_steps": train.num_steps,
        "eval_every": train.eval_every,
        "seeds": None,
    }
    _one_panel(experiment, own, panel)
    lines = {k: [*own, *x] for k, x in experiment.lines.items()}
    _keep_usable(cfg, experiment, "learning_curves", lines)


def _fair_comparison(cfg: DictConfig, experiment: DictConfig, own: list[str]) -> None:
    train = jobs.compose_train(cfg, own)
    panel = {"title": problems.name(train), "num_steps": train.num_steps, "num_rows": _ROWS}
    _one_panel(experiment, own, panel)
    for line in experiment.lines.values():
        line.first_rates = {PANEL: train.learning_rate}
    lines = {k: [*own, *x.overrides] for k, x in experiment.lines.items()}
    _keep_usable(cfg, experiment, "fair_comparison", lines)


def _one_panel(experiment: DictConfig, own: list[str], panel: dict[str, Any]) -> None:
    length = {key: panel[key] for key in ("num_steps",) if key in panel}
    full = {"overrides": own, **length}
    experiment.panels = {PANEL: {**panel, "overrides": own, "full": full}}
    experiment.shown = [PANEL]


def _estimator_quality(cfg: DictConfig, experiment: DictConfig, own: list[str]) -> None:
    train = jobs.compose_train(cfg, own)
    experiment.overrides = own
    experiment.training = ["estimator=backprop", f"learning_rate={train.learning_rate}"]
    _drop_hidden(experiment, experiment.reference)
    lines = {k: [*own, *x.overrides] for k, x in experiment.lines.items()}
    _keep_usable(cfg, experiment, "estimator_quality", lines)
    if experiment.reference not in experiment.lines:
        raise ValueError(
            f"own: estimator_quality compares with {experiment.reference}, which is left out."
        )


def _race(name: str, cfg: DictConfig, experiment: DictConfig, own: list[str]) -> None:
    train = jobs.compose_train(cfg, own)
    made = problems.problem(train)
    batch = first_examples(made.train, train.batch_size)
    scores = jax.eval_shape(lambda key: made.scores(made.init(key), batch), jax.random.key(0))
    if "accuracy" not in scores:
        raise ValueError(
            f"own: {name} compares test errors, and the scores of {problems.name(train)} have no "
            "accuracy. Run fair_comparison, which compares losses, or return an accuracy."
        )
    base = _model_of(next(iter(experiment.lines.values())).overrides)
    _drop_hidden(experiment)
    for key, line in list(experiment.lines.items()):
        if _model_of(line.overrides) != base:
            print(f"own: {name} leaves {key} out: it needs {_model_of(line.overrides)}")
            del experiment.lines[key]
            continue
        line.overrides = [x for x in line.overrides if not x.startswith(_MODELS)]
        line.first_rate = train.learning_rate
    experiment.model = [*own, *(x for x in experiment.model if not x.startswith(_MODELS))]
    first, last = list(experiment.overrides), list(experiment.model)
    lines = {k: [*first, *x.overrides, *last] for k, x in experiment.lines.items()}
    _keep_usable(cfg, experiment, name, lines)


def _drop_hidden(experiment: DictConfig, *kept: str) -> None:
    """Delete the lines that a preset does not show."""
    for line in set(experiment.lines) - {*(experiment.shown or experiment.lines), *kept}:
        del experiment.lines[line]
    experiment.shown = None


def _model_of(overrides: Sequence[str]) -> str:
    return next(x for x in overrides if x.startswith("model="))


def _keep_usable(
    cfg: DictConfig, experiment: DictConfig, name: str, lines: dict[str, list[str]]
) -> None:
    """Delete the lines that the problem cannot use, and the comparisons of those.

    Raises:
      ValueError: backprop is among them, with which the others are compared.
    """
    reasons = {}
    for line, overrides in lines.items():
        if reason := _unusable(jobs.compose_train(cfg, overrides)):
            print(f"own: {name} leaves {line} out: {reason}")
            del experiment.lines[line]
            reasons[line] = reason
    if "backprop" in reasons:
        raise ValueError(
            f"own: {name} compares with backprop, which this loss does not allow: "
            f"{reasons['backprop']} Run experiments.compare, which needs no backprop."
        )
    if "comparisons" in experiment:
        kept = set(experiment.lines)
        experiment.comparisons = [x for x in experiment.comparisons if set(x) <= kept]


def _unusable(train: DictConfig) -> str:
    """Return the reason why a line's estimator cannot take the loss, in a line; "" if it can."""
    made = problems.problem(train)
    batch = first_examples(made.train, train.batch_size)
    key = jax.random.key(0)
    jax.eval_shape(lambda key: made.loss(made.init(key), batch), key)  # the loss's own errors
    try:
        if "space" in train.estimator.value_and_grad:
            from_config.check_examples(train)
        value_and_grad = from_config.estimator(train)(made.loss)

        def step(key: Any) -> Any:
            return value_and_grad(key, value_and_grad.init(made.init(key), batch), batch)

        jax.eval_shape(step, key)
    except (TypeError, ValueError, NotImplementedError) as error:
        return str(error).strip().partition("\n")[0]
    return ""


_ADAPT: dict[str, Callable[[DictConfig, DictConfig, list[str]], None]] = {
    "step_cost": _step_cost,
    "learning_curves": _learning_curves,
    "fair_comparison": _fair_comparison,
    "estimator_quality": _estimator_quality,
    "accuracy_race": partial(_race, "accuracy_race"),
    "cnn_race": partial(_race, "cnn_race"),
}
