"""Every config composes, resolves and instantiates; unknown keys raise an error."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
import pytest
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

import fwdgrad
from experiments import reproduce
from experiments.common import from_config, settings, style
from fwdgrad.problems import TEST_FUNCTIONS, DataError, Problem
from fwdgrad.training import DivergedError, Settings

from .conftest import CONFIGS

GROUPS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in sorted(CONFIGS.iterdir())
    if folder.is_dir()
}
OF_TRAIN = [
    (g, o) for g in GROUPS if g not in ("preset", "experiment", "search") for o in GROUPS[g]
]


def test_the_groups_are_those_that_the_readme_names():
    assert set(GROUPS) == {
        "dataset", "estimator", "experiment", "model", "optimizer", "preset", "tangents",
        "space", "aggregation", "guess", "search", "problem",
    }  # fmt: skip


@pytest.mark.parametrize(("group", "option"), OF_TRAIN)
def test_every_option_of_train(compose, group, option):
    cfg = compose("train", f"{group}={option}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    estimator = instantiate(cfg.estimator.value_and_grad, _convert_="all")
    assert callable(estimator(lambda w: w))
    if "tangents" in cfg:
        assert isinstance(instantiate(cfg.tangents.distribution), fwdgrad.TangentDistribution)
    assert isinstance(instantiate(cfg.optimizer, _convert_="all"), optax.GradientTransformation)
    if "model" in cfg:
        assert callable(instantiate(cfg.model.make, _convert_="all"))
    config = OmegaConf.to_container(cfg, resolve=True)
    Settings(**{key: config[key] for key in from_config.SETTINGS})


@pytest.mark.parametrize("preset", GROUPS["preset"])
def test_every_preset_and_all_its_runs(compose, preset):
    cfg = compose("reproduce", f"preset={preset}")
    settings.check(cfg, "reproduce")
    assert cfg.preset == preset and cfg.output.root == f"results/{preset}"
    assert set(cfg.experiments) == set(GROUPS["experiment"]) == set(reproduce.EXPERIMENTS)
    for panel in cfg.experiments.learning_curves.panels.values():
        for line, overrides in cfg.experiments.learning_curves.lines.items():
            run = compose("train", *panel.overrides, *overrides)
            assert run.estimator.label == line and line in style.COLOURS
    for panel in cfg.experiments.fair_comparison.panels.values():
        for line in cfg.experiments.fair_comparison.lines.values():
            compose("train", *panel.overrides, *line.overrides)
    for race in (cfg.experiments.accuracy_race, cfg.experiments.cnn_race):
        for name in race.shown or race.lines:
            compose("train", *race.overrides, *race.lines[name].overrides, *race.model)
    paths = cfg.experiments.trajectories
    for names in paths.figures.values():
        for path in (paths.functions[name] for name in names):
            objective = TEST_FUNCTIONS[path.function]
            assert objective.dimension in (None, len(path.start))


@pytest.mark.parametrize(
    "name", [path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "protocol"]
)
def test_every_command_has_a_module_of_its_name(compose, name):
    OmegaConf.to_container(compose(name), resolve=True, throw_on_missing=True)
    assert len([*(CONFIGS.parent / "experiments").rglob(f"{name}.py")]) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_step=5", "Could not override 'num_step'"),
        (
            "estimator.value_and_grad.num_tangent=5",
            "Could not override 'estimator.value_and_grad.num_tangent'",
        ),
        ("model=mpl", "Could not find 'model/mpl'"),
        ("modl=mlp", "Could not override 'modl'"),
    ],
)
def test_unknown_keys_and_groups_raise(compose, override, message):
    with pytest.raises(HydraException, match=message):
        compose("train", override)


@pytest.mark.parametrize("key", ["num_tangents", "estimator.num_tangents", "tangents.rank"])
def test_a_key_that_is_added_and_that_nothing_reads(compose, tmp_path, key):
    cfg = compose("train", f"+{key}=8", f"output.root={tmp_path}/runs")
    with pytest.raises(ValueError, match=rf"nothing reads the key {key}\."):
        from_config.run(cfg)
    assert not (tmp_path / "runs").exists()


def test_the_identity_depends_on_all_settings_that_decide_numbers(compose):
    def identity(*overrides):
        return from_config.config_identity(
            from_config.identity_config(compose("train", *overrides))
        )

    assert identity() == identity("seed=5") == identity("output.root=elsewhere")
    for same in (
        "learning_rate",
        "optimizer.learning_rate.initial",
        "optimizer.learning_rate.rate",
    ):
        assert identity(f"{same}=1") == identity(f"{same}=1.0")
    different = [
        ("num_steps=1",),
        ("model=cnn",),
        ("model.make.widths=[8]",),
        ("dataset=kmnist",),
        ("dataset.folder=elsewhere",),
        ("tangents=sphere",),
        ("estimator=backprop",),
        ("estimator.value_and_grad.num_tangents=2",),
        ("optimizer=adam",),
        ("learning_rate=0.1",),
        ("batch_size=8",),
        ("steps_per_call=3",),
    ]
    assert len({identity(), *(identity(*o) for o in different)}) == 1 + len(different)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", "mlp-forward-normal-117f24a1c5"),
        ("model=cnn_local", "cnn_local-forward-normal-d1078b9079"),
        ("dataset=kmnist", "mlp-kmnist-forward-normal-cac504f87f"),
        ("estimator=evolution", "mlp-evolution-4eb005dcb1"),
        ("space=activities", "mlp-activities-normal-fd26573ed2"),
        ("guess=learned", "mlp-forward-normal-guided-9efa5e1835"),
        ("model=logistic optimizer=adam", "logistic-forward-normal-adam-8afc732c79"),
        ("model=cnn optimizer=cosine", "cnn-forward-normal-cosine-267de60325"),
        ("optimizer=sgd_clipped", "mlp-forward-normal-clipped_sgd-ce8310a16b"),
        ("optimizer=sgd_clipped optimizer.multiple=1", "mlp-forward-normal-clipped_sgd-f630c893b0"),
    ],
)
def test_recorded_runs_keep_their_identity(compose, overrides, expected):
    """The folders that earlier versions made, whatever the constructors are called now."""
    cfg = compose("train", *overrides.split(), "output.root=runs")
    assert from_config.folder(cfg).as_posix() == f"runs/{expected}/seed-0"


def test_a_target_that_was_renamed_names_the_new_one(compose, tmp_path):
    old = "optimizer.learning_rate._target_=fwdgrad.work.exponential_decay"
    cfg = compose("train", "model=logistic", old, f"output.root={tmp_path}")
    with pytest.raises(
        ValueError, match=r"^optimizer\.learning_rate\._target_ .*Use fwdgrad\.train"
    ):
        from_config.run(cfg)
    with pytest.raises(
        ValueError, match=r"_target_ is 'fwdgrad\.Norml', but module 'fwdgrad' has no"
    ):
        from_config.run(compose("train", "tangents.distribution._target_=fwdgrad.Norml"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=cnn", "model.make.channels=2", "model.make.width=8", "estimator=forward"),
        ("model=logistic", "optimizer=adam", "tangents=sphere"),
        ("model=logistic", "optimizer._target_=optax.lion", "optimizer.learning_rate=0.001"),
        ("model=logistic", "optimizer=sgd_clipped", "guess=learned"),
    ],
    ids=["cnn", "adam-sphere", "lion", "clipped-guided"],
)
def test_combinations_of_the_readme_train(compose, tmp_path, overrides):
    length = ["num_steps=3", "eval_every=2", "steps_per_call=2"]
    cfg = compose("train", *overrides, *length, f"output.root={tmp_path}")
    record = from_config.run(cfg)
    assert [row.step for row in record.metrics] == [0, 2, 3]


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("num_steps=many", ValueError, "num_steps must be an integer from 1 to .*; found 'many'"),
        ("dataset.folder=nowhere", DataError, "train-images-idx3-ubyte.gz is missing: expected"),
        (
            "estimator.value_and_grad.num_tangents=0",
            ValueError,
            "num_tangents must be an integer of at",
        ),
    ],
)
def test_bad_values_leave_nothing_half_made(compose, tmp_path, override, kind, message):
    cfg = compose("train", "model=logistic", f"output.root={tmp_path}", override)
    with pytest.raises(kind, match=message):
        from_config.run(cfg)
    assert list(tmp_path.iterdir()) == []


def test_divergence_keeps_the_record_so_far(compose, tmp_path):
    cfg = compose(
        "train", "model=mlp", "model.make.widths=[8]", "num_steps=20", "estimator=backprop",
        "learning_rate=1e38", f"output.root={tmp_path}",
    )  # fmt: skip
    with pytest.raises(DivergedError, match=r"the training loss is nan at step \d+ \(learning"):
        from_config.run(cfg)
    (table,) = tmp_path.glob("*/seed-0/metrics.csv")
    assert len(table.read_text().splitlines()) == 2


def test_defaults_are_the_papers(compose):
    cfg = compose("train", "model=mlp")
    assert cfg.batch_size == 64 and cfg.optimizer._target_ == "optax.sgd"
    assert cfg.optimizer.learning_rate == {
        "_target_": "fwdgrad.training.exponential_decay", "initial": 2e-4, "rate": 1e-4
    }  # fmt: skip
    assert set(cfg.optimizer) == {"_target_", "learning_rate"}
    assert compose("train", "model=logistic").learning_rate == 1e-4
    assert compose("train", "model=cnn").learning_rate == 2e-4


class Centred(NamedTuple):
    """A problem whose loss normalises over the minibatch."""

    problem: Problem

    def loss(self, params, batch):
        losses = self.problem.scores(params, batch)["loss"]
        return jnp.mean((losses - losses.mean()) ** 2)

    def __getattr__(self, name):
        return getattr(self.problem, name)


def test_a_loss_that_mixes_examples_raises_with_activities(compose, tmp_path, monkeypatch):
    options = ("model=logistic", "num_steps=2", "eval_every=2", f"output.root={tmp_path}")
    cfg = compose("train", *options, "space=activities")
    plain = from_config.problem(cfg)
    from_config.check_examples(cfg)  # the model as it is passes
    monkeypatch.setattr(from_config, "problem", lambda cfg: Centred(plain))
    with pytest.raises(ValueError, match=r"fun mixes the examples.*space=Weights\(\)"):
        from_config.run(cfg)
    assert not list(tmp_path.glob("*/*"))
