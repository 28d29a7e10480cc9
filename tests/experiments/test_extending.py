"""A data set of one's own is a YAML and a class, and so is a model; no file here changes."""

import sys

import numpy as np
import pytest

from experiments.common import from_config, problems
from fwdgrad.problems import Examples, load_dataset

MODULE = "a_module_of_mine"
CODE = """
import equinox as eqx
import numpy as np
from fwdgrad.problems import Examples


class Squares:
    def __init__(self, side=6, number=40):
        self.side, self.number = side, number
        self.num_classes = 2

    def read(self, name, folder):
        return self.examples(self.number, 0), self.examples(20, 1)

    def examples(self, number, seed):
        labels = np.random.default_rng(seed).integers(0, 2, number, np.int32)
        images = np.zeros((number, self.side, self.side), np.uint8)
        images[np.arange(number), 2, 1 + labels * self.side // 2] = 255
        return Examples(images, labels)


class Net(eqx.Module):
    layer: eqx.nn.Linear

    def __init__(self, gain=1.0, *, shape, num_classes, key):
        layer = eqx.nn.Linear(shape[0] * shape[1], num_classes, key=key)
        self.layer = eqx.tree_at(lambda x: x.weight, layer, gain * layer.weight)

    def __call__(self, image):
        return self.layer(image.reshape(-1))
"""
DATASET = f"""
name: squares
folder: null
source: {{_target_: {MODULE}.Squares, side: 8}}
"""
MODEL = f"""
name: net
make: {{_target_: {MODULE}.Net, _partial_: true, gain: 0.5}}
learning_rate: 0.01
steps_per_call: {{default: 2}}
"""


@pytest.fixture
def added(compose, tmp_path, monkeypatch):
    """(*overrides) -> a config that finds the user's folder of configs and module."""
    for group, name, text in [("dataset", "squares", DATASET), ("model", "net", MODEL)]:
        (tmp_path / "configs" / group).mkdir(parents=True)
        (tmp_path / "configs" / group / f"{name}.yaml").write_text(text)
    (tmp_path / f"{MODULE}.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    where = f"hydra.searchpath=[file://{tmp_path}/configs]"
    short = "num_steps=4", "eval_every=2", "batch_size=4", f"output.root={tmp_path}/runs"
    yield lambda *more: compose("train", where, *short, *more)
    sys.modules.pop(MODULE, None)
    problems._problem.cache_clear()


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("dataset=squares", "model.make.widths=[4]"), "mlp-squares-forward-normal-"),
        (("model=net", "estimator=backprop"), "net-backprop-"),
        (("model=net", "dataset=squares", "space=activities"), "net-squares-activities-"),
    ],
)
def test_a_data_set_and_a_model_of_ones_own_train(added, overrides, name):
    record = from_config.run(added(*overrides))
    assert record.folder.parent.name.startswith(name) and len(record.metrics) == 3
    if "dataset=squares" in overrides:
        made = from_config.problem(added(*overrides))
        assert [x.shape for x in made.train] == [(36, 8, 8), (36,)] and len(made.valid[0]) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset=squares", "dataset.source._target_=math.floor"), "^dataset.source: .*floor"),
        (("dataset=squares", "+dataset.source.sides=2"), "^dataset.source: .*sides"),
        (("dataset.name=squares",), r"^dataset\.name must be one of mnist"),
        (("dataset=squares", "dataset.source=null"), r"dataset\.source must be a mapping"),
    ],
)
def test_a_wrong_source_is_an_error(added, overrides, message):
    with pytest.raises(Exception, match=message):
        from_config.run(added(*overrides))


def test_a_source_without_its_methods_is_an_error():
    with pytest.raises(TypeError, match="found tuple, without num_classes and read"):
        load_dataset("mine", source=(1,))


def test_the_last_tenth_of_a_small_data_set_is_for_validation():
    class Few:
        num_classes = 2

        def read(self, name, folder):
            images, labels = np.zeros((25, 2, 2), np.uint8), np.arange(25, dtype=np.int32) % 2
            return Examples(images, labels), Examples(images[:3], labels[:3])

    made = load_dataset("few", source=Few())
    assert [len(part.labels) for part in made[:3]] == [23, 2, 3] and made.num_classes == 2
