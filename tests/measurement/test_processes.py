"""Times over fresh processes: orders, medians, means, intervals."""

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.measurement import (
    Program,
    Sample,
    geometric_mean_interval,
    host_state,
    in_fresh_process,
    interleaved_seconds,
    processes,
    ratio_over_processes,
    seconds_over_processes,
    shared_processes,
    time_in_processes,
    workers,
)


def table(seconds):
    """Samples of program -> process -> the seconds of its turns."""
    return [
        Sample(name, process, turn, x)
        for name, of_program in seconds.items()
        for process, turns in enumerate(of_program)
        for turn, x in enumerate(turns)
    ]


def test_the_mean_over_processes_of_medians_over_turns():
    """Ratios of a turn, and not of medians; one turn that was disturbed changes nothing."""
    samples = table({
        "a": [[1.0, 1.0, 90.0], [2.0, 4.0, 8.0], [4.0, 4.0, 4.0]],
        "b": [[2.0, 2.0, 90.0], [4.0, 2.0, 4.0], [0.5, 4.0, 1.0]],
    })  # fmt: skip
    found = seconds_over_processes(samples, "a")
    logs = [math.log(x) for x in (1.0, 4.0, 4.0)]
    half = 4.302652729911275 * statistics.stdev(logs) / 3**0.5  # Student's, two degrees of freedom
    mean = statistics.fmean(logs)
    expected = (math.exp(mean), math.exp(mean - half), math.exp(mean + half), 3)
    assert found == pytest.approx(expected, rel=1e-9)
    # By turns b/a is 2, 2, 1; 2, 1/2, 1/2; 1/8, 1, 1/4.
    ratio = ratio_over_processes(samples, "b", "a")
    assert ratio.value == pytest.approx((2 * 0.5 * 0.25) ** (1 / 3)) and ratio.n == 3
    inverse = ratio_over_processes(samples, "a", "b")
    assert [1 / x for x in inverse[:3]] == pytest.approx([ratio.value, ratio.high, ratio.low])
    assert ratio_over_processes(samples, "a", "a")[:3] == (1, 1, 1)


def test_there_is_no_interval_of_fewer_than_three_processes():
    samples = table({"a": [[1.0], [4.0]], "b": [[1.0], [1.0]]})
    for found in (seconds_over_processes(samples, "a"), ratio_over_processes(samples, "a", "b")):
        assert found.value == pytest.approx(2) and found.n == 2
        assert math.isnan(found.low) and math.isnan(found.high) and str(found) == "2"


def test_errors_name_programs_and_turns():
    samples = table({"a": [[1.0, 2.0]], "b": [[1.0]]})
    with pytest.raises(ValueError, match=r"same turns of a and of b in process 0; found 2 and 1"):
        ratio_over_processes(samples, "a", "b")
    with pytest.raises(ValueError, match=r"program must be one of a, b; found c\."):
        seconds_over_processes(samples, "c")


def test_the_interval_covers_as_often_as_it_says():
    """Of 4,000 intervals over 5 processes 95 %, within 4.4 σ; over turns far fewer.

    Ratios of a process have a shift of their own, which is larger than the turns' noise: medians of
    7 turns are not normal, but nearly.
    """
    repeats, n, turns = 4_000, 5, 7
    generator = np.random.default_rng(0)
    shifts = generator.normal(0, 0.01, (repeats, n, 1))
    ratios = np.exp(0.3 + shifts + generator.normal(0, 0.002, (repeats, n, turns)))
    covered = np.mean([
        low < math.exp(0.3) < high
        for _, low, high, _ in map(geometric_mean_interval, np.median(ratios, axis=2))
    ])  # fmt: skip
    bound = 4.4 * (0.95 * 0.05 / repeats) ** 0.5
    assert abs(covered - 0.95) < bound
    one_process = np.mean([
        low < math.exp(0.3) < high for _, low, high, _ in map(geometric_mean_interval, ratios[:, 0])
    ])  # fmt: skip
    assert one_process < 0.5


def test_one_program_under_two_names_has_a_ratio_that_holds_1():
    """A shift by the order of compiling cancels: of 2,000 intervals at least 95 % hold 1."""
    repeats, held = 2_000, 0
    generator = np.random.default_rng(1)
    for seed in range(repeats):
        logs = []
        for order in processes._orders(["again", "other", "once"], 5, seed):
            first = 0.02 if order.index("again") < order.index("once") else -0.02
            logs.append(first + generator.normal(0, 0.01))
        _, low, high, _ = geometric_mean_interval(np.exp(logs))
        held += low <= 1 <= high
    assert held / repeats >= 0.95 - 4.4 * (0.95 * 0.05 / repeats) ** 0.5


def test_each_order_is_followed_by_its_reverse():
    orders = list(processes._orders(list("abcdef"), 5, 0))
    assert all(sorted(order) == list("abcdef") for order in orders)
    assert orders[1] == orders[0][::-1] and orders[3] == orders[2][::-1]
    assert orders[0] != orders[2] != orders[4]
    assert orders != list(processes._orders(list("abcdef"), 5, 1))


def test_turns_in_random_orders():
    """Each function is called once a round, in an order of two rounds that is random."""
    called = []
    functions = {name: lambda name=name: called.append(name) for name in "abcd"}
    seconds = interleaved_seconds(functions, rounds=31, seed=0)
    rounds = ["".join(called[i : i + 4]) for i in range(0, len(called), 4)]
    assert len(rounds) == 32 and all(sorted(x) == list("abcd") for x in rounds)
    assert all(
        first == second[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True)
    )
    assert len(set(rounds[::2])) > 10 and {len(x) for x in seconds.values()} == {31}


def test_no_turn_begins_after_the_time_is_over():
    calls = {name: lambda: jnp.ones(()) for name in "ab"}
    found = interleaved_seconds(calls, rounds=50, max_seconds=0.0)
    assert {len(x) for x in found.values()} == {1}
    assert len(interleaved_seconds(calls, rounds=3, max_seconds=60)["a"]) == 3


def sums(order):
    """Programs that find out in which process they are."""
    double = jax.config.jax_enable_x64
    facts = {"compile_seconds": 1.0, "process": os.getpid(), "double": double}
    return {name: Program(lambda: jnp.ones(9).sum(), 4, facts) for name in order}


def test_each_measurement_is_made_in_a_fresh_process_with_the_same_settings():
    with jax.enable_x64(True):
        found = time_in_processes(sums, ["a", "b"], processes=2, rounds=3)
    samples = [Sample(*row) for row in found["samples"]]
    assert [s[:3] for s in samples] == [
        (name, process, turn) for process in range(2) for name in "ab" for turn in range(3)
    ]
    assert all(0 < s.seconds < 1 for s in samples)
    facts = found["facts"]
    assert facts["a"] == facts["b"] and facts["a"]["double"] == facts["a"]["compile_seconds"] == 1
    assert facts["a"]["process"] != os.getpid()
    assert [about["order"] for about in found["processes"]] in (
        [["a", "b"], ["b", "a"]], [["b", "a"], ["a", "b"]]
    )  # fmt: skip
    for about in found["processes"]:
        assert about["host"].keys() == host_state().keys()
        assert about["compile_seconds"] == {"a": 1.0, "b": 1.0}


def test_shared_processes_make_one_measurement_after_another():
    """One that is killed is replaced; they end with their context."""
    with shared_processes():
        first, second = (time_in_processes(sums, ["a", "b"], processes=1, rounds=1) for _ in "12")
        with pytest.raises(RuntimeError, match=r"was killed, perhaps since memory ran out"):
            workers.shared().call(0, end)
        third = time_in_processes(sums, ["a", "b"], processes=1, rounds=1)
    ids = [found["facts"]["a"]["process"] for found in (first, second, third)]
    assert ids[0] == ids[1] != ids[2] and os.getpid() not in ids
    assert [found["processes"][0].get("before") for found in (first, second, third)] == [
        None, 1, None
    ]  # fmt: skip
    assert workers.shared() is None
    for process in map(int, ids):
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def meet(folder, order):
    """Programs that compile only if two processes do so at the same time."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline, "the other process compiles later"
        time.sleep(0.01)
    return sums(order)


def test_shared_processes_compile_at_the_same_time_and_are_timed_in_turn(tmp_path):
    with shared_processes():
        found = time_in_processes(partial(meet, tmp_path), ["a", "b"], processes=2, rounds=1)
        alone = time_in_processes(sums, ["a"], processes=1, rounds=1)
    assert len(list(tmp_path.iterdir())) == 2
    assert [about["beside"] for about in found["processes"]] == [1, 1]
    assert "beside" not in alone["processes"][0]
    assert {sample[1] for sample in found["samples"]} == {0, 1}


def end_once(folder, order):
    """Kill each process that compiles for the first time."""
    if len(list(folder.iterdir())) < 2:
        (folder / str(os.getpid())).touch()
        time.sleep(1.0)  # until the other has begun
        os._exit(1)
    return sums(order)


@pytest.mark.thorough
def test_a_measurement_after_one_in_which_all_processes_were_killed(tmp_path):
    with shared_processes():
        for _ in range(2):  # at the latest the second finds two files
            make = partial(end_once, tmp_path)
            try:
                found = time_in_processes(make, ["a"], processes=2, rounds=1)
            except RuntimeError as error:
                assert "was killed, perhaps since memory ran out" in str(error)
        assert [about["host"].keys() for about in found["processes"]] == 2 * [host_state().keys()]


def test_programs_are_given_up_when_they_have_been_timed(monkeypatch):
    monkeypatch.setattr(processes, "in_fresh_process", lambda function, *args: function(*args))
    for names in (["a", "b"], ["c"]):
        found = time_in_processes(sums, names, processes=1, rounds=1)
        assert found["facts"].keys() == set(names) and processes._compiled == {}


def test_a_measurement_that_would_take_too_long_ends_after_a_process(monkeypatch):
    left = []

    def go_on(seconds):
        left.append(seconds)
        if len(left) == 2:
            raise TimeoutError

    monkeypatch.setattr(processes, "in_fresh_process", lambda function, *args: function(*args))
    with pytest.raises(TimeoutError):
        time_in_processes(sums, ["a"], processes=5, rounds=1, go_on=go_on)
    assert len(left) == 2 and all(seconds > 0 for seconds in left)


@pytest.mark.thorough
def test_a_process_ends_with_the_one_that_started_it():
    """Also if that is killed."""
    script = """if __name__ == "__main__":
        import os, signal
        from fwdgrad.measurement import workers
        with workers.shared_processes():
            workers.shared().start(1, None)
            print(workers.shared()._pools[0].submit(os.getpid).result(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == -signal.SIGKILL
    process, deadline = int(ran.stdout), time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} goes on")


def end():
    os._exit(1)


def test_a_process_that_is_killed_is_an_error_with_a_remedy():
    with pytest.raises(RuntimeError, match=r"was killed, perhaps since memory ran out\. Measure"):
        in_fresh_process(end)
