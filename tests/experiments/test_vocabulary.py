"""Every line of every experiment has a name of its own."""

import pytest

from experiments.common import style, vocabulary
from experiments.modes import estimator_error
from experiments.paper import depth_scaling

from .conftest import CONFIGS

PRESETS = [path.stem for path in (CONFIGS / "preset").glob("*.yaml")]
# Lines that are no part of a config.
IN_CODE = {
    "depth_scaling": depth_scaling.ESTIMATORS,
    "estimator_error": estimator_error.DISTRIBUTIONS,
}


def check_names(keys):
    names = {key: vocabulary.find_name(key) for key in keys}
    missing = [key for key, name in names.items() if name is None]
    assert not missing, f"experiments/common/vocabulary.py has no name of {missing}"
    assert len(set(names.values())) == len(names), names
    assert not any(set("{}_|") & set(name) for name in names.values()), names


@pytest.mark.parametrize("preset", PRESETS)
def test_every_line_of_a_preset(compose, preset):
    experiments = compose("reproduce", f"preset={preset}").experiments
    with_lines = [name for name in experiments if "lines" in experiments[name]]
    assert {"learning_curves", "fair_comparison", "accuracy_race", "cnn_race"} <= {*with_lines}
    for name in with_lines:
        check_names(experiments[name].lines)


def test_every_line_of_the_other_experiments(compose):
    check_names(compose("divergence").lines)
    for keys in IN_CODE.values():
        check_names(keys)


def test_a_name_says_what_the_key_ends_in():
    assert style.label("backprop-momentum-10s") == "backprop, momentum, 10 s"
    assert style.label("control-first-frozen-at-0.4") == "first layer frozen (control), rate 0.4"
    assert style.label("forward-low_rank") == "forward gradient, low-rank"
    assert style.label("layerwise-blocks-32").endswith("exact last, 32 blocks")
    assert style.label("activities-exact-16").endswith("exact last, K = 16")
    assert style.label("of_mine") == "of mine"  # a line that a user has added
