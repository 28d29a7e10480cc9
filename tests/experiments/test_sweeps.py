"""Sweeps of `experiments.train` by each launcher: members that fail, workers that are killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from experiments.common import from_config, sweeps
from fwdgrad.records import checkpoints

from .conftest import CONFIGS
from .test_commands import numbers

# launcher -> the options for two workers. Ray does not install with the pinned versions.
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2"],
}
SHORT = ["model=logistic", "num_steps=4", "eval_every=2", "steps_per_call=2", "learning_rate=1e-4"]
LONG = [
    "model=logistic", "num_steps=800", "eval_every=200", "steps_per_call=5", "learning_rate=1e-4",
]  # fmt: skip


def start(*overrides, launcher="basic", path=""):
    """Start a sweep with a launcher, in a process of its own."""
    if launcher != "basic":
        plugin = launcher.partition("_")[0]
        pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher")
    options = [f"hydra/launcher={launcher}", *LAUNCHERS.get(launcher, [])]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.train", "-m", *options, *overrides],
        cwd=CONFIGS.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": f"{path}{os.environ['PATH']}"},
    )  # fmt: skip


def end(process):
    """Return the exit status, and the lines of the report on members that failed."""
    out, error = process.communicate(timeout=300)
    print(out, error)
    _, found, report = error.partition(" members begun did not finish:\n")
    return process.returncode, report.splitlines() if found else []


def statuses(root):
    """Return the statuses of all runs, in order."""
    return sorted(json.loads(x.read_text())["status"] for x in root.glob("*/seed-*/run.json"))


def is_clean(root):
    """Return True if no folder of a sweep is left."""
    return not list(root.glob(".sweep-*"))


def test_the_report_names_members_that_raised_or_were_killed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweeps.atexit, "register", lambda *_: None)
    config = {"hydra": {"sweep": {"dir": str(tmp_path)}, "job": {"num": 0}}}
    members = sweeps.Members()
    members.on_job_end(OmegaConf.create(config), JobReturn())  # a command without -m
    assert not list(tmp_path.iterdir())
    members.on_multirun_start(OmegaConf.create(config))
    for num, error in enumerate(["", "none", "slow"]):
        config["hydra"] |= {"job": {"num": num}, "overrides": {"task": [f"seed={num}", "a=b"]}}
        worker = pickle.loads(pickle.dumps(members))
        worker.on_job_start(OmegaConf.create(config))
        if error == "slow":
            running = worker
            continue
        result = JobReturn(status=JobStatus.FAILED if error else JobStatus.COMPLETED)
        result.return_value = ValueError(f"{error}\nmore") if error else 1.0
        worker.on_job_end(OmegaConf.create(config), result)
    (folder,) = tmp_path.iterdir()
    is_running, looks = sweeps._is_running, []

    def look(member):
        looks.append(member)
        if len(looks) == 7:  # after two looks at each member the last one is killed
            running._held.close()
        return is_running(member)

    monkeypatch.setattr(sweeps, "_is_running", look)
    sweeps.report(folder)
    assert capsys.readouterr().err.splitlines() == [
        "waiting for members that still run: 1",
        "",
        "2 of the 3 members begun did not finish:",
        "  seed=1 a=b: ValueError: none",
        f"  seed=2 a=b: {sweeps.KILLED}",
        sweeps.GO_ON,
    ]
    assert is_clean(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_members_that_fail_are_named_and_the_others_finish(tmp_path, launcher):
    """One has a wrong value, one diverges; both are before the one that does not fail."""
    rates = "learning_rate=fast,1e38,1e-4"
    status, report = end(start(*SHORT, rates, f"output.root={tmp_path}", launcher=launcher))
    assert status == 1
    wrong, diverged, last = report
    assert last == sweeps.GO_ON
    assert "learning_rate=fast" in wrong and "ValueError: learning_rate" in wrong
    assert "learning_rate=1e+38" in diverged and "DivergedError: the training loss is" in diverged
    assert statuses(tmp_path) == ["diverged", "finished"]
    assert is_clean(tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_a_killed_worker_loses_nothing(compose, tmp_path, all_examples, launcher):
    """Train the missing runs when the sweep is started again; they end with the same bits."""
    root = tmp_path / "killed"
    sweep = [*LONG, "seed=0,1", "output.checkpoint_seconds=0", f"output.root={root}"]
    process = start(*sweep, launcher=launcher)
    wait_until = time.monotonic() + 120
    while not (begun := list(root.glob("*/seed-1/checkpoint.eqx"))):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < wait_until
        time.sleep(0.01)
    killed = begun[0].parent
    os.kill(json.loads((killed / ".holder.json").read_text())["pid"], signal.SIGKILL)
    status, report = end(process)
    if launcher == "ray":  # starts the member again by itself
        assert status == 0 and not report
    else:
        assert status == 1
        assert json.loads((killed / "run.json").read_text())["status"] == "running"
        (line,) = (line for line in report if "seed=1" in line)
        assert line.endswith(sweeps.KILLED)
        if launcher == "submitit_local":  # joblib ends all workers with one
            assert "seed=0" not in report and statuses(root) == [
                "finished",
                "running",
            ]
        finished = {
            path: path.read_bytes()
            for path in root.glob("*/seed-*/run.json")
            if b'"finished"' in path.read_bytes()
        }
        assert end(start(*sweep, launcher=launcher)) == (0, [])
        assert all(path.read_bytes() == content for path, content in finished.items())
    assert is_clean(root)
    (resumed_at,) = json.loads((killed / "run.json").read_text())["resumed_at"]
    assert 0 < resumed_at < 800
    for seed in (0, 1):
        alone = from_config.run(
            compose("train", *LONG, f"seed={seed}", f"output.root={tmp_path}/alone")
        ).folder
        assert numbers(killed.parent / f"seed-{seed}") == numbers(alone)
        states = [checkpoints._read(x)[0] for x in (killed.parent / f"seed-{seed}", alone)]
        assert states[0] == states[1]


SLURM = {  # in the place of Slurm: the two jobs of an array run here
    "sbatch": """
cp "$1" "$FAKE_SLURM/script"
export SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0
export SLURM_LOCALID=0 SLURM_JOB_NODELIST=here
for i in 0 1; do
  SLURM_JOB_ID=$((8 + i)) SLURM_ARRAY_TASK_ID=$i bash "$FAKE_SLURM/script" > /dev/null 2>&1 &
done
echo "Submitted batch job 7"
""",
    "srun": 'shift; while [[ "$1" == --* ]]; do shift 2; done\n"$@"\n',
    "sacct": 'echo "JobID|State|NodeList"; echo "7_0|RUNNING|here"; echo "7_1|RUNNING|here"\n',
}


@pytest.mark.thorough
def test_slurm_is_asked_for_the_resources_of_the_config(tmp_path, monkeypatch):
    """Submitit's Slurm executor, with commands in the place of Slurm's."""
    bin = tmp_path / "bin"
    bin.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    for name, script in SLURM.items():
        (bin / name).write_text(f"#!/bin/bash\n{script}")
        (bin / name).chmod(0o755)
    wanted = [
        "hydra.launcher.partition=long", "hydra.launcher.timeout_min=600",
        "hydra.launcher.mem_gb=8", "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.cpus_per_task=4",
        "hydra.launcher.array_parallelism=1", "hydra.launcher.name=seeds",
    ]  # fmt: skip
    process = start(
        *SHORT, "seed=0,1", *wanted, f"output.root={tmp_path}/runs",
        launcher="submitit_slurm", path=f"{bin}:",
    )  # fmt: skip
    assert end(process) == (0, [])
    asked = set((tmp_path / "script").read_text().splitlines())
    options = [
        "partition=long", "time=600", "mem=8GB", "gpus-per-node=1", "cpus-per-task=4", "nodes=1",
        "ntasks-per-node=1", "array=0-1%1", "job-name=seeds",
    ]  # fmt: skip
    assert {f"#SBATCH --{option}" for option in options} <= asked
    assert statuses(tmp_path / "runs") == ["finished", "finished"]


@pytest.mark.thorough
def test_a_search_by_optuna(tmp_path):
    """Of two trials the better one is named, and a run that diverges is a trial that has failed."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    process = start(
        "+search=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1",
        *SHORT[:-1], "hydra.sweeper.params.learning_rate='choice(1e-4,1e-3,1e38)'",
        f"output.root={tmp_path}",
    )  # fmt: skip
    status, (failed, _) = end(process)
    assert status == 0
    assert "learning_rate=1e+38" in failed and "DivergedError" in failed
    assert statuses(tmp_path) == ["diverged", "finished", "finished"]
    best = tmp_path / "optimization_results.yaml"
    losses = [
        json.loads(path.read_text())["final"]["valid_loss"]
        for path in tmp_path.glob("*/*/run.json")
        if '"finished"' in path.read_text()
    ]
    assert f"best_value: {min(losses)}" in best.read_text()
