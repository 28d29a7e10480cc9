"""Runs that anyone can repeat: the committed curves, begun again on this machine.

Other machines, thread counts and versions of XLA differ in the last bits, and training lets such
differences grow. So the beginning of a run is compared, by a tolerance: at 250 steps of logistic
regression a relative 1e-3 is far more than rounding makes, on a CPU or a GPU, and less than another
seed makes. Both presets are of the same seeds, made on a CPU and on an H200.
"""

import pytest

from experiments.common import curves, from_config, jobs
from tests.sweeps import thorough_but

from .conftest import CONFIGS

RESULTS = CONFIGS.parent / "results"
STEPS = 250
LINES = ["backprop", "forward-normal", "forward-low_rank"]


@pytest.mark.parametrize("line", thorough_but(["forward-low_rank"], LINES))
def test_a_committed_run_is_repeated(compose, tmp_path, all_examples, line):
    cfg = compose("reproduce", "preset=paper", f"output.root={tmp_path}")
    config = jobs.train_config(
        cfg, "learning_curves", "logistic", line, num_steps=STEPS, eval_every=STEPS, seed=0
    )
    first, last = from_config.run(config).metrics
    for preset in ("paper", "h200"):
        committed = curves.read_curves(RESULTS / preset / "learning_curves.csv")["logistic"][line]
        row = committed["step"][0].tolist().index(STEPS)
        for name in ("train_loss", "valid_loss"):
            assert getattr(first, name) == pytest.approx(committed[name][0, 0], rel=1e-3)
            assert getattr(last, name) == pytest.approx(committed[name][0, row], rel=1e-3)
        other_seed = committed["valid_loss"][1, row]
        assert abs(other_seed / last.valid_loss - 1) > 5e-3  # the tolerance tells seeds apart
