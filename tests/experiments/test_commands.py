"""The commands as a user runs them, in processes of their own."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.common import from_config, problems
from fwdgrad.records import checkpoints

ROOT = Path(__file__).parents[2]
MLP = [
    "model=mlp",
    "model.make.widths=[64]",
    "estimator=forward",
    "tangents=rademacher",
    "num_steps=100",
    "eval_every=20",
    "steps_per_call=5",
    "output.checkpoint_seconds=0.1",
]
LENGTH = ["num_steps=6", "eval_every=3", "steps_per_call=3"]


@pytest.fixture(autouse=True)
def few_examples():
    """All of them: runs in this process are held against those of commands."""
    problems._problem.cache_clear()
    problems._images.cache_clear()
    yield
    problems._problem.cache_clear()
    problems._images.cache_clear()


def command(module, *overrides):
    return [sys.executable, "-m", f"experiments.{module}", *overrides]


def call(module, *overrides, **environment):
    return subprocess.run(
        command(module, *overrides), cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, **environment},
    )  # fmt: skip


def only_run(root):
    (folder,) = root.glob("*/seed-0")
    return folder


def numbers(folder):
    """The metrics as text and the final metrics, without the times."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]
    final = json.loads((folder / "run.json").read_text())["final"]
    return rows, {k: v for k, v in final.items() if k != "seconds"}


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.01)


@pytest.mark.thorough
def test_killed_run_ends_with_the_same_bits(compose, tmp_path):
    """A second copy of a run's command is refused; kill -9 in the middle of it; the command again.

    Whatever has become of all files but the checkpoint, nothing but the times differs.
    """
    from_config.run(compose("train", *MLP, f"output.root={tmp_path}/alone"))
    alone = only_run(tmp_path / "alone")

    process = subprocess.Popen(
        command("train", *MLP, f"output.root={tmp_path}/killed"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def under_way():
        tables = list((tmp_path / "killed").glob("*/seed-0/metrics.csv"))
        checkpointed = bool(list((tmp_path / "killed").glob("*/seed-0/checkpoint.eqx")))
        return checkpointed and tables[0].read_text().count("\n") >= 3

    with process:
        wait_for(under_way, process)
        os.kill(process.pid, signal.SIGSTOP)  # it does not finish while the second one runs
        killed = only_run(tmp_path / "killed")
        (killed / ".metrics.csv-abc.unfinished").write_text("what the first is writing")
        files = {path: path.read_bytes() for path in killed.iterdir()}
        second = call("train", *MLP, f"output.root={tmp_path}/killed")
        assert second.returncode == 1
        assert f"{killed} is in use by process {process.pid} on {socket.gethostname()}, since " in (
            second.stderr
        )
        assert files == {path: path.read_bytes() for path in killed.iterdir()}
        os.kill(process.pid, signal.SIGKILL)
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    (killed / "run.json").unlink()
    (killed / "config.yaml").write_text("")
    table = (killed / "metrics.csv").read_text().splitlines(keepends=True)
    (killed / "metrics.csv").write_text("\ufeff" + "".join(table[:-1]))

    again = call("train", *MLP, f"output.root={tmp_path}/killed")
    assert again.returncode == 0, again.stderr
    assert numbers(killed) == numbers(alone)
    first, second = (checkpoints._read(folder)[0] for folder in (killed, alone))
    assert first == second
    (resumed_at,) = json.loads((killed / "run.json").read_text())["resumed_at"]
    assert 0 < resumed_at < 100
    assert sorted(p.name for p in alone.iterdir()) == [
        "checkpoint.eqx", "config.yaml", "metrics.csv", "run.json"
    ]  # fmt: skip
    rows, final = numbers(alone)
    assert [row["step"] for row in rows] == ["0", "20", "40", "60", "80", "100"]
    assert 0 <= final["test_accuracy"] <= 1


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    result = call(
        "train", "-m", "seed=0,1", "estimator=forward,backprop", "model=logistic",
        *LENGTH, f"output.root={root}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return root


@pytest.mark.thorough
def test_sweep_makes_a_folder_for_each_config_and_seed(sweep):
    folders = sorted(str(p.relative_to(sweep)) for p in sweep.glob("*/seed-*"))
    names = [folder.split("-")[:-2] for folder in folders]
    assert [f[-6:] for f in folders] == ["seed-0", "seed-1"] * 2
    assert names == [["logistic", "backprop"]] * 2 + [["logistic", "forward", "normal"]] * 2
    for folder in sweep.glob("*/seed-*"):
        info = json.loads((folder / "run.json").read_text())
        assert (
            info["status"] == "finished"
            and f"seed: {info['seed']}\n" in (folder / "config.yaml").read_text()
        )


@pytest.mark.thorough
def test_a_sweep_started_again_makes_the_missing_runs_alone(sweep):
    finished = {p: p.stat().st_mtime_ns for p in sweep.glob("*/seed-*/*")}
    result = call(
        "train", "-m", "seed=0,1,2", "estimator=backprop", "model=logistic",
        *LENGTH, f"output.root={sweep}",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert finished == {p: p.stat().st_mtime_ns for p in finished}
    assert len(list(sweep.glob("*/seed-2"))) == 1


@pytest.mark.thorough
def test_other_settings_of_jax_make_another_run(sweep):
    """Beside the finished ones, which stay as they are: other draws, and float64."""
    finished = {path: path.read_bytes() for path in sweep.glob("*/seed-0/*")}
    result = call(
        "train", "estimator=forward", "model=logistic", *LENGTH, f"output.root={sweep}",
        JAX_DEFAULT_PRNG_IMPL="rbg", JAX_ENABLE_X64="1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert finished == {path: path.read_bytes() for path in finished}
    (new,) = {path.parent for path in sweep.glob("*/seed-0/*")} - {p.parent for p in finished}
    (other,) = {p.parent for p in finished if "-forward-" in str(p)}
    assert new.parent.name.startswith("logistic-forward-normal-")
    settings = [json.loads((folder / "run.json").read_text())["jax"] for folder in (new, other)]
    found = [(jax["jax_default_prng_impl"], jax["jax_enable_x64"]) for jax in settings]
    assert found == [("rbg", True), ("threefry2x32", False)]
    losses = [float(numbers(folder)[0][0]["train_loss"]) for folder in (new, other)]
    assert [loss == float(np.float32(loss)) for loss in losses] == [False, True]
    assert abs(losses[0] - losses[1]) > 1e-3  # another start


def test_an_unknown_key_on_the_command_line_is_an_error(tmp_path):
    result = call("train", "num_step=5", f"output.root={tmp_path}/runs")
    assert result.returncode == 1 and "Could not override 'num_step'" in result.stderr
    assert not (tmp_path / "runs").exists()
