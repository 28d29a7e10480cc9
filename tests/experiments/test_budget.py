"""A budget in seconds: jobs by importance, and a rerun makes the missing ones alone."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from experiments import reproduce
from experiments.common import alone, budget, from_config, jobs, start
from experiments.common.budget import Budget
from experiments.paper import learning_curves
from fwdgrad.records import read_json, read_table, write_table

from .conftest import CONFIGS


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Recorder:
    """Experiments whose jobs take time once and are recorded then."""

    def __init__(self, clock):
        self.clock, self.recorded, self.order = clock, set(), []

    def run(self, limit, **experiments):
        """Run name -> [(part, item, level, seconds)] as `reproduce` does; return the new jobs."""
        self.order = []
        with budget.keep(limit):
            for level in limit.rounds():
                for name, jobs_of_it in experiments.items():
                    if not limit.is_due(name, level):
                        continue
                    with limit.experiment(name):
                        for job in jobs_of_it:
                            self.do(limit, len(jobs_of_it), name, *job)
                    if limit.has_worked:
                        with limit.drawing(name):
                            self.clock.now += 1
        return self.order

    def do(self, limit, number, name, part, item, level, seconds):
        with limit.job(part, item, level=level, share=1 / number):
            if (name, part, item) not in self.recorded:
                budget.present().claim()
                self.clock.now += seconds
                self.recorded.add((name, part, item))
                self.order.append(f"{name} {part} {item}")


CURVES = [("mlp, seed", seed, int(seed >= 3), 10) for seed in range(5)]
DEPTHS = [("depth", depth, int(depth not in (1, 100)), 5) for depth in (100, 1, 50, 20)]
FIRST = [*(f"curves mlp, seed {s}" for s in (0, 1, 2)), "scaling depth 100", "scaling depth 1"]
MORE = [*(f"curves mlp, seed {s}" for s in (3, 4)), "scaling depth 50", "scaling depth 20"]


@pytest.mark.parametrize("seconds", [20, 30, 43, 44, 50, 60, 70, 80, 1000])
def test_the_most_important_jobs_come_first_and_the_budget_is_kept(seconds):
    clock = Clock()
    limit = Budget(seconds, expected={"curves": 50, "scaling": 20}, reserve=1, clock=clock)
    done = Recorder(clock).run(limit, curves=CURVES, scaling=DEPTHS)
    assert clock.now - 100 <= seconds
    assert set(done) <= set(FIRST) or done[:5] == FIRST  # no job of level 1 before all of level 0
    assert len(done) >= {20: 1, 44: 5, 80: 9}.get(seconds, 0)


def test_without_a_budget_all_jobs_are_run_in_one_round():
    done = Recorder(clock := Clock()).run(Budget(clock=clock), curves=CURVES, scaling=DEPTHS)
    assert done == [*FIRST[:3], *MORE[:2], *FIRST[3:], *MORE[2:]]


def test_a_rerun_with_more_seconds_does_only_what_is_missing():
    clock = Clock()
    recorder = Recorder(clock)
    expected = {"curves": 50, "scaling": 20}
    limit = Budget(46, expected=expected, clock=clock)
    first = recorder.run(limit, curves=CURVES, scaling=DEPTHS)
    assert limit.left_out == {
        "curves": {"mlp, seed": ["3", "4"]}, "scaling": {"depth": ["50", "20"]}
    }  # fmt: skip
    limit = Budget(50, expected=expected, clock=clock)
    assert sorted([*first, *recorder.run(limit, curves=CURVES, scaling=DEPTHS)]) == sorted(
        [*FIRST, *MORE]
    )
    assert not any(limit.left_out.values()) and limit.information() == {}
    again = Budget(0.5, expected=expected, clock=clock)  # recorded jobs need no time
    assert recorder.run(again, curves=CURVES, scaling=DEPTHS) == []
    assert not any(again.left_out.values())


def test_the_time_of_a_job_is_that_of_the_longest_of_its_part():
    """Compilation makes the first job longer than the preset's share says."""
    clock = Clock()
    jobs_of_it = [("cnn, seed", seed, 0, 20) for seed in range(5)]
    limit = Budget(50, expected={"curves": 25}, clock=clock)
    assert len(Recorder(clock).run(limit, curves=jobs_of_it)) == 2
    assert limit.information() == {"budget_seconds": 50, "left_out": ["cnn, seed 2–4"]}


def test_the_first_job_of_a_part_is_expected_to_be_late_where_the_others_were():
    clock = Clock()
    jobs_of_it = [(f"panel {i}", "", 0, 20) for i in range(5)]  # 8 seconds expected of each
    limit = Budget(50, expected={"costs": 40}, clock=clock)
    assert len(Recorder(clock).run(limit, costs=jobs_of_it)) == 2


def test_jobs_are_expected_to_take_their_shares():
    """Of the seconds of the longest job of the part, in proportion."""
    clock = Clock()
    limit = Budget(80, expected={"scaling": 10}, clock=clock)
    taken = []
    with budget.keep(limit), limit.experiment("scaling"):
        for depth in (100, 30, 20, 10):
            with limit.job("depth", depth, share=depth / 160):
                limit.claim()
                clock.now += 0.6 * depth
                taken.append(depth)
    assert taken == [100, 30] and limit.left_out["scaling"] == {"depth": ["20", "10"]}


def test_a_job_that_takes_longer_than_expected_ends_early():
    """And does not begin once more, unless there is the time that it lacked."""
    clock, begun = Clock(), []

    def job():
        with limit.job("depth", 100, share=0.5):
            limit.claim()
            begun.append(clock.now)
            for process in range(3):
                clock.now += 20
                limit.go_on(20 * (2 - process))

    limit = Budget(50, expected={"scaling": 20}, clock=clock)
    with budget.keep(limit), limit.experiment("scaling"):
        job()
        job()
    assert begun == [100.0] and clock.now == 120
    assert limit.left_out == {"scaling": {"depth": ["100", "100"]}}
    assert budget.present().go_on(1e9) is None  # without a limit


def test_time_is_kept_for_drawing():
    clock = Clock()
    limit = Budget(30, expected={"curves": 50}, reserve=15, clock=clock)
    assert Recorder(clock).run(limit, curves=CURVES) == ["curves mlp, seed 0"]


def test_an_experiment_without_jobs_is_run_or_left_out_as_a_whole():
    clock = Clock()
    limit = Budget(10, expected={"races": 60}, clock=clock)
    with budget.keep(limit), limit.experiment("races"):
        budget.present().claim()
        pytest.fail("it begins")
    assert limit.is_left_out("races") and budget.present() is not limit


@pytest.fixture
def slow_training(monkeypatch):
    """A clock on which every training takes ten seconds, and the runs that were trained."""
    clock, trained, train = Clock(), [], from_config.train_together

    def train_slowly(*args, **kwargs):
        clock.now += 10
        trained.extend(args[5])
        return train(*args, **kwargs)

    def begin(cfg, names):
        return Budget(cfg.budget_seconds, clock=clock)

    monkeypatch.setattr(from_config, "train_together", train_slowly)
    monkeypatch.setattr(start, "start", begin)
    return trained


@pytest.mark.thorough
def test_seeds_that_do_not_fit_are_named_in_the_report(
    compose, tmp_path, capsys, monkeypatch, slow_training
):
    def said():
        return capsys.readouterr().out.count(" steps in ")

    monkeypatch.setattr(learning_curves, "draw", lambda folder: None)  # it takes long
    options = (
        "preset=smoke", f"output.root={tmp_path}", "shown=[learning_curves]",
        "experiments.learning_curves.seeds=[0,1,2,3]", "output.progress=false",
    )  # fmt: skip
    assert reproduce.run(compose("reproduce", *options, "budget_seconds=100")) == {}
    assert slow_training == [0, 0, 0, 1, 1, 1, 2, 2, 2] and said() == 9
    assert read_json(tmp_path / "learning_curves.json")["left_out"] == [
        "Logistic regression, seed 3"
    ]
    told = "Left out of learning_curves, to keep the budget of 100 s: Logistic regression, seed 3."
    assert told in (tmp_path / "README.md").read_text()
    assert {row["seed"] for row in read_table(tmp_path / "learning_curves_runs.csv")} == set("012")

    slow_training.clear()
    alone.run_alone(compose("reproduce", *options, "budget_seconds=40"), learning_curves)
    assert slow_training == [3, 3, 3] and said() == 3  # not of runs that were recorded before
    assert "left_out" not in read_json(tmp_path / "learning_curves.json")


def test_a_budget_in_which_nothing_fits(compose, tmp_path, capsys, monkeypatch, slow_training):
    monkeypatch.setattr(
        start, "start", lambda cfg, names: Budget(1, expected=dict.fromkeys(names, 5.0))
    )
    options = (
        "preset=smoke", f"output.root={tmp_path}", "shown=[learning_curves]", "budget_seconds=1"
    )  # fmt: skip
    cfg = compose("reproduce", *options)
    assert reproduce.run(cfg) == {} and slow_training == []
    report = (tmp_path / "README.md").read_text()
    assert "Left out of learning_curves, to keep the budget of 1 s: all of it." in report
    assert not (tmp_path / "learning_curves.csv").exists()
    alone.run_alone(cfg, learning_curves)
    assert "nothing of it fits into the budget of 1 s" in capsys.readouterr().out


def test_the_report_is_written_after_every_experiment(compose, tmp_path, monkeypatch):
    def experiment(name):
        def run(cfg, folder):
            seen.append((folder / "README.md").read_text() if seen else "")
            write_table(folder / f"{name}.csv", ("seed",), [(0,)])
            jobs.write_information(folder, name, [name], {"provenance": [], "wall_seconds": 1})

        return SimpleNamespace(
            NAME=name, run=run, draw=lambda folder: None, describe=lambda folder: f"## {name}"
        )

    seen = []
    experiments = {name: experiment(name) for name in ("first", "second", "third")}
    monkeypatch.setattr(reproduce, "EXPERIMENTS", experiments)
    root = ("preset=smoke", f"output.root={tmp_path}")
    assert reproduce.run(compose("reproduce", *root, "shown=[third,first]")) == {}
    assert "## first" in seen[1] and "Not yet run: third." in seen[1]
    assert "Not yet run" not in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match=r"shown must name experiments, first, .*found fourth\."):
        reproduce.run(compose("reproduce", *root, "shown=[fourth]"))


def test_a_preset_for_another_platform_says_what_it_needs(compose, tmp_path):
    cfg = compose("reproduce", "preset=smoke", "platform=gpu", f"output.root={tmp_path}")
    for command in (reproduce.run, lambda cfg: alone.run_alone(cfg, learning_curves)):
        with pytest.raises(RuntimeError, match=r"needs a GPU, but .* CPU here.*preset=quick"):
            command(cfg)
    assert list(tmp_path.iterdir()) == []


def test_the_first_lines_come_at_once(tmp_path):
    command = [sys.executable, "-m", "experiments.reproduce", f"output.root={tmp_path}"]
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=CONFIGS.parent, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        process.kill()
    assert time.monotonic() - begun < 30
    assert lines[0].startswith("preset quick on cpu (") and "trajectories" in lines[0]
    assert lines[1].startswith("about ") and "nominal time" in lines[1]
