"""Statistics of curves, and the comparison of our numbers with the paper's."""

import math
import re
import subprocess

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.common import claims, jobs, protocol, report
from experiments.common.curves import Unreached, mean_ratio, mean_time, paired, plot, time_to
from experiments.common.paper_facts import FACTS, compare
from experiments.common.verdicts import PROCESSES, TURNS
from fwdgrad.measurement import Interval, exact
from fwdgrad.records import RecordError, write_json, write_table


def curve(*seeds, names=None):
    """Return the curve of (seconds, losses) of each seed; an iteration takes two seconds."""
    seconds, losses = (np.array(x) for x in zip(*seeds, strict=True))
    names = range(len(seeds)) if names is None else names
    seed = np.repeat(np.array(names)[:, None], seconds.shape[1], 1)
    return {"seed": seed, "seconds": seconds, "step": seconds / 2, "valid_loss": losses}


@pytest.mark.parametrize(
    ("loss", "time"), [(2.5, 5.0), (1.0, 20.0), (3.0, 0.0), (0.9, math.inf), (1.5, 15.0)]
)
def test_time_to_loss_interpolates(loss, time):
    of_run = curve(([0.0, 10.0, 20.0], [3.0, 2.0, 1.0]))
    assert time_to(loss, of_run) == time and time_to(loss, of_run, by="step") == time / 2


def test_the_ratio_of_times_pairs_the_seeds():
    slow = curve(([0.0, 10.0], [2.0, 1.0]), ([0.0, 20.0], [2.0, 1.0]))
    fast = curve(([0.0, 5.0], [2.0, 1.0]), ([0.0, 5.0], [2.0, 1.0]))
    ratio = mean_ratio(fast, slow)
    assert ratio.value == pytest.approx((0.5 + 0.25) / 2) and ratio.n == 2
    assert mean_ratio(slow, slow) == Interval(1, 1, 1, 2)
    assert mean_time(fast, slow).value == 5
    fast["step"] = fast["step"] * 3
    assert mean_ratio(fast, slow, "step").value == pytest.approx(3 * ratio.value)


def test_the_ratio_of_times_to_a_loss():
    slow = curve(([0.0, 10.0], [2.0, 1.0]), ([0.0, 20.0], [2.0, 1.0]))
    fast = curve(([0.0, 4.0], [2.0, 0.0]), ([0.0, 4.0], [2.0, 0.0]))
    assert mean_ratio(fast, slow, loss=1.5).value == pytest.approx((1 / 5 + 1 / 10) / 2)
    assert math.isnan(mean_ratio(fast, slow, loss=0.5).value)  # which the slow one does not reach
    assert mean_ratio(slow, fast, loss=0.5).reached == 0


def test_a_seed_that_never_gets_there_counts_with_the_end_of_its_run():
    slow = curve(([0.0, 10.0], [2.0, 1.0]), ([0.0, 20.0], [2.0, 1.0]))
    never = curve(([0.0, 5.0], [2.0, 1.5]), ([0.0, 5.0], [2.0, 1.0]))
    ratio = mean_ratio(never, slow)
    assert isinstance(ratio, Unreached) and (ratio.reached, ratio.n) == (1, 2)
    assert ratio.least.value == pytest.approx((0.5 + 0.25) / 2)
    assert str(ratio) == "> 0.375, reached by 1 of 2"


def test_pairs_are_of_the_seeds_that_both_have():
    run = ([0.0, 1.0], [2.0, 1.0])
    one = curve(run, ([0.0, 3.0], [2.0, 1.0]), names=(4, 7))
    other = curve(([0.0, 6.0], [2.0, 1.0]), run, run, names=(7, 2, 3))
    first, second = paired(one, other)
    assert first["seconds"].tolist() == [[0, 3]] and second["seconds"].tolist() == [[0, 6]]
    assert mean_ratio(first, second).value == 0.5


def test_no_shaded_interval_reaches_below_zero_on_a_logarithmic_axis():
    """There it is Student's of the logarithms, about the geometric mean."""
    samples, bounds = np.array([[1.0, 2.0], [10.0, 4.0], [100.0, 8.0]]), {}
    for scale in ("linear", "log"):
        axis = plt.figure().subplots()
        axis.set_yscale(scale)
        plot(axis, np.arange(2), samples, "backprop")
        (line,), (band,) = axis.lines, axis.collections
        bounds[scale] = line.get_ydata(), band.get_paths()[0].vertices[:, 1].min()
        plt.close()
    np.testing.assert_allclose(bounds["linear"][0], [37.0, 14 / 3])
    np.testing.assert_allclose(bounds["log"][0], [10.0, 4.0])
    assert bounds["linear"][1] < 0 < bounds["log"][1]


def interval(value, low=math.nan, high=math.nan):
    return Interval(value, low, high, 5)


def source(commit="abcdef0123", *, dirty=False, gpu=False, **more):
    hardware = {
        "device": "gpu" if gpu else "cpu", "cpu": "some CPU", "cpu_cores": 2, "num_devices": 1,
        "device_kind": "some GPU" if gpu else "cpu", "system": "Linux",
    }  # fmt: skip
    code = {"commit": commit, "dirty": dirty}
    return {"code": code, "versions": {"jax": "0.1", "torch": None}, "hardware": hardware, **more}


def test_the_report_has_every_claim_once_and_its_source(tmp_path):
    information = {"provenance": [source(dirty=True)], "wall_seconds": 3725.4}
    for name in ("learning_curves", "depth_scaling", "cnn_race"):
        write_json(tmp_path / f"{name}.json", information)
    ours, low_rank = interval(0.598, 0.58, 0.61), interval(0.5, 0.4, 0.6)
    found = {
        "learning_curves": [compare("mlp.R_ratio", ours, low_rank, of=PROCESSES)],
        "depth_scaling": [compare("depth.R_ratio.1", interval(0.6, 0.4, 0.8), of=TURNS)],
    }
    sections = {"learning_curves": "## One", "depth_scaling": "## Two", "cnn_race": "## Race"}
    path = report.write(
        tmp_path, "Title", "a command", sections, found, {"two": "OSError: disk full"}
    )
    text = path.read_text()
    assert text.startswith("# Title\n\nMade by `a command`; not edited by hand.\n")
    assert "**two failed:** OSError: disk full" in text and "## One" in text
    assert (tmp_path / "races.md").read_text().endswith("## Race\n") and "## Race" not in text
    assert "](races.md)" in text and "laboratory.md" not in text
    assert "| learning_curves | abcdef0+ | 1:02:05 | 1 |" in text and "torch" not in text
    assert "- Machine 1: some CPU, 2 cores; Linux; jax 0.1." in text
    number = "0.598 [0.58, 0.61] (5 processes)"
    assert f"| Figure 4 | R_f/R_b | 0.586–0.598 (F) | {number} | reproduced |  | – |  |" in text
    assert "| 0.6 [0.4, 0.8] (5 turns) | undecided |" in text
    for fact in FACTS.values():
        assert fact.quantity in text
    counts = dict(re.findall(r"\| ([a-z ]+) \| (\d+) \| \d+ \|", text))
    unchecked = sum(fact.unchecked != "" for fact in FACTS.values())
    assert counts == {
        "reproduced": "1", "not reproduced": "0", "undecided": "1",
        "cannot be checked": str(unchecked), "not in this preset": str(len(FACTS) - unchecked - 2),
    }  # fmt: skip
    assert "MLP: the paper 0.586–0.598, CPU 0.598 [0.58, 0.61] (reproduced; cheaper)" in text
    assert "R_f/R_b of the MLP: CPU 0.5 [0.4, 0.6] (cheaper)" in text
    rows = claims.read(tmp_path)
    assert [(x.finding.key, x.table, x.commit, x.hardware) for x in rows] == [
        ("mlp.R_ratio", "learning_curves", "abcdef0+", "some CPU"),
        ("depth.R_ratio.1", "depth_scaling", "abcdef0+", "some CPU"),
    ]
    assert rows[0].finding == found["learning_curves"][0]


def test_a_gpu_is_judged_in_its_own_column(tmp_path):
    """Of two folders side by side, each report has both columns; `gpu` goes before `h200`."""

    def text(name):
        about = {"provenance": [source(gpu=name != "paper")], "wall_seconds": 1.0}
        write_json(tmp_path / name / "learning_curves.json", about)
        found = [compare("mlp.R_ratio", exact(values[name]), of=PROCESSES)]
        found = {"learning_curves": found}
        sections = {"learning_curves": ""}
        return report.write(tmp_path / name, name, "", sections, found, {}).read_text()

    values = {"paper": 2.6, "h200": 0.9, "gpu": 0.59}
    dense = FACTS["mlp.R_ratio"].above
    row = "| Figure 4 | R_f/R_b | 0.586–0.598 (F) | 2.6 | not reproduced |"
    assert f"{row}  | – | {dense} |" in text("paper")
    assert f"{row} 0.9 | not reproduced | {dense} |" in text("h200")
    assert f"{row} 0.9 | not reproduced | {dense} |" in text("paper")
    assert f"{row} 0.59 | reproduced | CPU: {dense} |" in text("gpu")
    assert f"{row} 0.59 | reproduced | CPU: {dense} |" in text("paper")


def test_runs_of_a_gpu_in_a_report_of_a_cpu(tmp_path):
    """They are judged in the GPU's column, beside the rest of it from another folder."""
    about = {"provenance": [source(gpu=True)], "wall_seconds": 1.0}
    found = claims.sourced({"a": [compare("mlp.R_ratio", exact(0.59), of=PROCESSES)]}, {"a": about})
    claims.write(tmp_path / "gpu", found)
    of_cpu = {"provenance": [source(gpu=False)], "wall_seconds": 1.0}
    trained_on_gpu = {**of_cpu, "findings_of": [source(gpu=True)]}
    own = claims.sourced(
        {
            "a": [compare(f"mlp.R_{x}", exact(2.0), of=PROCESSES) for x in ("ratio", "f")],
            "b": [compare("replications.backprop_wins", exact(0.1), of=PROCESSES)],
        },
        {"a": of_cpu, "b": trained_on_gpu},
    )
    on = {claim.key: set(claim.on) for claim in claims.claims(tmp_path / "paper", own)}
    assert on["mlp.R_ratio"] == {"cpu", "gpu"} and on["mlp.R_f"] == {"cpu"}
    assert on["replications.backprop_wins"] == {"gpu"}


NOTES = {"provenance": [], "wall_seconds": 1.0}


@pytest.fixture
def tables(tmp_path):
    """A folder with an experiment's tables and what it notes beside them."""
    for name in ("one", "one_tuning"):
        write_table(tmp_path / f"{name}.csv", ("seed", "loss"), [(0, 1.5), (1, None), (2, 0.25)])
    jobs.write_information(tmp_path, "one", ["one", "one_tuning"], NOTES)
    return tmp_path


def test_tables_that_are_as_they_were_written(tables):
    jobs.check_tables(tables, "one")
    path = tables / "one.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    jobs.check_tables(tables, "one")
    jobs.check_tables(tables, "another")  # that has never run


def test_tables_of_earlier_versions_have_no_sums(tables):
    write_json(tables / "one.json", NOTES)
    (tables / "one.csv").unlink()
    jobs.check_tables(tables, "one")


@pytest.mark.parametrize("name", ["one", "one_tuning"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: text.index("2,0.25")],  # the last line
        lambda text: text.replace("1,\n", ""),
        lambda text: text.replace("0.25", "0.2"),
        lambda text: "".join(text.splitlines(keepends=True)[:1]),
        None,
    ],
)
def test_no_line_of_a_table_is_lost_silently(tables, name, change):
    path = tables / f"{name}.csv"
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(RecordError, match=f"{path} .*cut, changed or lost. Restore it, or run"):
        jobs.check_tables(tables, "one")


@pytest.mark.parametrize("content", ["", '{"provenance": []}', "[]"])
def test_notes_that_were_damaged(tables, content):
    path = tables / "one.json"
    path.write_text(content)
    with pytest.raises(RecordError, match=f"{path} .*Restore the file, or delete it and run"):
        jobs.check_tables(tables, "one")


def test_sources_name_processes_of_before_and_settings_of_jax(tmp_path):
    old, new = source("a"), source("b")
    settings = {"jax_enable_x64": True, "jax_default_prng_impl": "threefry2x32", "xla_flags": ""}
    record = {**new, "jax": settings, "earlier": [old], "wall_seconds": 1.0}
    found = jobs.provenance_of([record, record])
    assert found["provenance"] == [old, {**new, "jax": settings}] and found["wall_seconds"] == 2
    write_json(tmp_path / "one.json", found)
    text = report.write(tmp_path, "Title", "a command", {"one": ""}, {}, {}).read_text()
    assert "| one | a, b | 0:00:02 | 1, 2 |" in text
    first, second = (line for line in text.splitlines() if line.startswith("- Machine"))
    assert "jax_" not in first and second.endswith("; jax_enable_x64 True.")


def test_the_protocol_of_a_run_is_that_of_its_commit(tmp_path, monkeypatch):
    """A change of the protocol after the runs is not the one that they followed."""

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    def commit(path):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(str(len(commits)))
        git("add", path)
        git("commit", "-qm", path)
        commits.append(git("rev-parse", "HEAD"))

    commits = []
    git("init", "-q")
    for path in ("configs/protocol.yaml", "code.py", "configs/protocol.yaml"):
        commit(path)
    monkeypatch.setattr(protocol, "_ROOT", tmp_path)
    run, later, unknown = source(commits[1]), source(commits[2]), source("0" * 40)
    assert protocol.fixed_by("cnn_race", [run, run, unknown]) == [commits[0]]
    assert protocol.fixed_by("cnn_race", [run, later]) == [commits[0], commits[2]]
    about = {"provenance": [run], "wall_seconds": 1.0}
    jobs.write_information(tmp_path, "cnn_race", [], about)
    text = report.write(tmp_path, "", "", {"cnn_race": ""}, {}, {}).read_text()
    assert f"| cnn_race | {commits[1][:7]} | {commits[0][:7]} | 0:00:01 | 1 |" in text
    assert "was fixed by the commit that is named, before its runs." in text


def test_the_processes_of_timings_have_their_machine_in_the_report(tmp_path):
    host = {"cpu": "C", "caches": {"L1 Data": "32K", "L2 Unified": "1M"}, "threads": 2}
    processes = [{"of": [], "host": {**host, "load": [x, 9.0, 9.0]}} for x in (0.25, 1.5)]
    write_json(tmp_path / "one.json", {**NOTES, "processes": processes})
    text = report.write(tmp_path, "", "", {"one": ""}, {}, {}).read_text()
    assert (
        "- 2 timed processes: C, 2 threads; caches L1 Data 32K, L2 Unified 1M; load average at "
        "their start 0.25 to 1.5." in text
    )


def test_a_long_report_has_its_tables_in_files(tmp_path):
    """Sections on no figure of the paper are cut before longer ones that are on one."""

    def section(title, rows):
        table = "\n".join(["| a |", "|---|", *["| word |"] * rows])
        return f"## {title}\n\n![Figure](x.png)\n\nThree sentences.\n\n{table}\n\nA note."

    sections = {
        "figure": section("One (the paper's figure 2)", 1200),
        "best": section("Two", 900),
        "cost": section("Three", 800),
    }
    for name in sections:
        write_json(tmp_path / f"{name}.json", NOTES)
    text = report.write(tmp_path, "", "", sections, {}, {}).read_text()
    assert report.count_words(text) <= report.MOST_WORDS
    assert sections["figure"] in text
    for name in ("best", "cost"):
        beginning = sections[name].partition("\n\n| a |")[0]
        assert f"{beginning}\n\n[The tables]({name}.md)." in text
        whole = (tmp_path / f"{name}.md").read_text()
        assert whole.startswith("# T") and whole.count("| word |") == sections[name].count("word")
    sections["figure"] = section("One (the paper's figure 2)", 3000)
    text = report.write(tmp_path, "", "", sections, {}, {}).read_text()
    assert report.count_words(text) <= report.MOST_WORDS and "](figure.md)" in text
