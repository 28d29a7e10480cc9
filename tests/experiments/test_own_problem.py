"""`own`: every experiment that trains runs on a problem of the user's own."""

import sys
import types

import jax
import jax.numpy as jnp
import pytest

from experiments import reproduce
from experiments.common import alone, own_problem, problems
from experiments.cost import step_cost
from experiments.paper import depth_scaling, fair_comparison, learning_curves
from experiments.quality import estimator_quality
from experiments.races import accuracy_race
from fwdgrad.problems import Problem
from fwdgrad.records import read_json, read_table

OWN = "another_package_of_mine"


def classes(mixed=False, has_accuracy=True, loops=False, broken=False):
    """Two layers on two classes.

    `mixed`: each example's loss depends on the minibatch; `loops`: reverse mode is not defined;
    `broken`: the loss raises an error.
    """
    x = jax.random.normal(jax.random.key(0), (64, 3))
    y = (x.sum(1) > 0).astype(jnp.int32)

    def init(key):
        first, second = jax.random.split(key)
        return [jax.random.normal(first, (3, 8)), jax.random.normal(second, (8, 2))]

    def scores(params, batch):
        inputs, labels = batch
        logits = jnp.tanh(inputs @ params[0]) @ params[1]
        logits = logits - logits.mean(0) if mixed else logits
        if broken:
            raise TypeError("a mistake in the loss")
        if loops:
            logits = jax.lax.while_loop(lambda x: x.sum() > 1e9, lambda x: x / 2, logits)
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
        right = (logits.argmax(1) == labels).astype(jnp.float32)
        return {"loss": losses, **({"accuracy": right} if has_accuracy else {})}

    return Problem(init, scores, (x, y), (x, y), (x, y))


@pytest.fixture(autouse=True)
def package(monkeypatch):
    module = types.ModuleType(OWN)
    module.classes = classes
    monkeypatch.setitem(sys.modules, OWN, module)
    problems._problem.cache_clear()
    yield
    problems._problem.cache_clear()


@pytest.fixture
def config(compose, tmp_path):
    def make(*overrides, own=()):
        target = f"problem._target_={OWN}.classes"
        short = "num_steps=4 eval_every=2 batch_size=8 steps_per_call=1 learning_rate=0.1"
        quoted = ",".join(f"'{x}'" for x in [target, *short.split(), *own])
        return compose(
            "reproduce", "preset=smoke", f"output.root={tmp_path}", "output.progress=false",
            f"own=[{quoted}]", "protocol.timing={processes: 1, rounds: 2}",
            "protocol.seeds=[0,1,2]", "protocol.tuning={seeds: [7], num_rates: 3, factor: 3}",
            "experiments.learning_curves.seeds=[0,1]", "experiments.step_cost.processes=1",
            *overrides,
        )  # fmt: skip

    return make


@pytest.mark.thorough
def test_the_cost_of_a_step(config, tmp_path):
    alone.run_alone(config(), step_cost)
    table = read_table(tmp_path / "step_cost.csv")
    assert {row["panel"] for row in table} == {"own"}
    assert {"loss", "backprop", "forward-low_rank", "layerwise-1"} <= {
        row["estimator"] for row in table
    }
    about = read_json(tmp_path / "step_cost.json")["panels"]["own"]
    assert about["title"] == "classes, minibatch 8" and about["changed"] == ""
    assert about["step"]["problem"]["_target_"] == f"{OWN}.classes"


@pytest.mark.thorough
def test_lines_that_the_loss_does_not_allow_are_left_out(config, tmp_path, capsys):
    alone.run_alone(config(own=["+problem.mixed=true"]), step_cost)
    said = capsys.readouterr().out
    assert "own: step_cost leaves layerwise-1 out: " in said and "mixes the examples" in said
    lines = {row["estimator"] for row in read_table(tmp_path / "step_cost.csv")}
    assert "layerwise-1" not in lines and "forward-normal" in lines


@pytest.mark.thorough
def test_learning_curves(config, tmp_path):
    alone.run_alone(config(), learning_curves)
    rows = read_table(tmp_path / "learning_curves_runs.csv")
    assert {(row["panel"], row["seed"]) for row in rows} == {("own", "0"), ("own", "1")}
    assert (tmp_path / "learning_curves.png").exists()


@pytest.mark.thorough
def test_each_at_its_best_rate(config, tmp_path):
    alone.run_alone(config(), fair_comparison)
    rows = read_table(tmp_path / "fair_comparison_tuning.csv")
    first = next(row["learning_rate"] for row in rows if row["role"] == "tuning")
    assert first == "0.1" and len({row["estimator"] for row in rows}) == 5


@pytest.mark.thorough
def test_the_laboratory(config, tmp_path):
    lines = "[weights-rademacher-1,activities-rademacher-1,weights-low_rank-1]"
    small = ["draws=4", f"shown={lines}", "seeds=[0,1,2]", "stages=[0,2]"]
    small = [f"experiments.estimator_quality.{x}" for x in small]
    alone.run_alone(config(*small), estimator_quality)
    found = {row["line"] for row in read_table(tmp_path / "estimator_quality.csv")}
    assert found == {"weights-rademacher-1", "activities-rademacher-1", "weights-low_rank-1"}


@pytest.mark.thorough
def test_a_race(config, tmp_path, capsys):
    small = [
        "operations=20000",
        "num_rows=1",
        "shown=[backprop,control-first-frozen,activity-blocks,weight-low_rank]",
    ]
    alone.run_alone(config(*[f"experiments.accuracy_race.{x}" for x in small]), accuracy_race)
    said = capsys.readouterr().out
    assert "leaves control-first-frozen out: it needs model=mlp_frozen" in said
    lines = read_json(tmp_path / "accuracy_race.json")["lines"]
    assert set(lines) == {"backprop", "activity-blocks", "weight-low_rank"}


@pytest.mark.parametrize(
    ("experiment", "own", "message"),
    [
        (depth_scaling, (), "depth_scaling cannot use a problem of your own: it makes networks"),
        (accuracy_race, ("+problem.has_accuracy=false",), "classes have no accuracy"),
        (step_cost, ("+problem.loops=true",), "compares with backprop, which .* Run experiments"),
    ],
)
def test_a_problem_that_an_experiment_cannot_use_says_why(config, experiment, own, message):
    with pytest.raises(ValueError, match=message):
        alone.run_alone(config("shown=null", own=own), experiment)


def test_an_error_of_the_loss_is_its_own(config):
    with pytest.raises(TypeError, match="a mistake in the loss"):
        alone.run_alone(config(own=["+problem.broken=true"]), step_cost)


def test_the_folder_of_a_preset_is_refused(config):
    with pytest.raises(ValueError, match=r"Say output\.root=results/NAME"):
        reproduce.run(config("output.root=results/smoke", "shown=[step_cost]"))


def test_a_config_without_it_is_as_it_was(compose):
    cfg = compose("reproduce", "preset=smoke")
    assert own_problem.adapted(cfg, ["depth_scaling"]) is cfg
