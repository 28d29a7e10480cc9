"""Times of programs over several fresh processes, and their intervals.

Turns of one process share its memory layout and the order in which its programs were compiled, so
they agree with each other more than with the turns of another process: an interval over turns may
exclude 1 for the ratio of a program to itself under another name. So each process gives one
number, the median over its turns, and intervals are over processes. A process compiles the programs
in an order of its own, and the next process in the reverse of it: two programs that are equal could
change their names without changing the distribution of their ratio's logarithm, except in sign.

A process takes seconds to start, on a GPU about eight, and on a GPU compiling takes most of a
measurement. Within `workers.shared_processes` a process makes one measurement after another
(process i of each is process i of all), and the processes compile at the same time, before the
first of them is timed.
"""

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fwdgrad.measurement.workers import in_fresh_process, shared
from fwdgrad.records import changed_settings, cpu_model
from fwdgrad.util.intervals import Interval, geometric_mean_interval
from fwdgrad.util.timing import interleaved_seconds

_ABOUT = "host", "order", "before", "beside"  # of a process, in records
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class Program(NamedTuple):
    """A compiled program to be timed.

    Attributes:
      call: makes `steps` steps, and returns JAX arrays.
      steps: the number of steps in a call.
      facts: numbers known when it is compiled, by name; `compile_seconds` is one of them.
    """

    call: Callable[[], Any]
    steps: int
    facts: Mapping[str, float]


class Sample(NamedTuple):
    """The seconds of a step of a program in one turn of one process."""

    program: str
    process: int
    turn: int
    seconds: float


def time_in_processes(
    make: Callable[[Sequence[str]], Mapping[str, Program]],
    names: Sequence[str],
    *,
    processes: int = 5,
    rounds: int,
    max_seconds: float | None = None,
    seed: int = 0,
    go_on: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Any]:
    """Time programs in fresh processes, one after the other, in turns within each.

    A script that calls this must do so under `if __name__ == "__main__":`, since each process
    imports it.

    Args:
      make: names -> program of each, compiled in this order; called in each process, so it must be
        importable, with arguments that can be pickled.
      names: the programs' names.
      processes: the number of processes.
      rounds: the number of turns in a process.
      max_seconds: of timing in a process, after which no further turn begins.
      seed: of the programs' orders.
      go_on: called before each process but the first with the seconds that this and the later ones
        will take if they are as fast as the last; an error that it raises ends the measurement.

    Returns:
      Plain values: `samples`, a row of `Sample` each; `facts`, name -> fact -> median over the
      processes; `processes`, for each its `host_state` before its turns, the `order` of compiling
      and the `compile_seconds` of each program; of shared processes `before` and `beside`, as
      `shared_processes` has them. Compilation does not read JAX's persistent cache.

    Raises:
      RuntimeError: a process was killed.
    """
    found: list[dict[str, Any]] = []
    to_compile = [(make, order, changed_settings()) for order in _orders(names, processes, seed)]
    if (kept := shared()) is not None:
        kept.start(processes, make)
        kept.call_at_once(_compile, to_compile)
    for process in range(processes):
        how = rounds, max_seconds, seed + process
        begun = time.monotonic()
        if kept is None:
            found.append(in_fresh_process(_compile_and_time, to_compile[process], how))
        else:
            found.append(kept.call(process, _time, *how))
        if left := processes - len(found):
            go_on(left * (time.monotonic() - begun))
    samples = [
        Sample(name, process, turn, float(f"{seconds:.6g}"))
        for process, of_process in enumerate(found)
        for name in names
        for turn, seconds in enumerate(of_process["seconds"][name])
    ]
    facts = {
        name: {
            fact: float(np.median([of_process["facts"][name][fact] for of_process in found]))
            for fact in found[0]["facts"][name]
        }
        for name in names
    }
    about = [
        {
            **{key: of_process[key] for key in _ABOUT if key in of_process},
            "compile_seconds": {
                name: of_process["facts"][name]["compile_seconds"] for name in names
            },
        }
        for of_process in found
    ]
    return {"samples": samples, "facts": facts, "processes": about}


def _orders(names: Sequence[str], processes: int, seed: int) -> Iterator[list[str]]:
    """Yield the order of programs in each process: random, and then its reverse."""
    for process in range(processes):
        order = np.random.default_rng([seed, process // 2]).permutation(len(names))
        yield [names[i] for i in (order if process % 2 == 0 else order[::-1])]


_compiled: dict[str, Program] = {}  # of this process, in the order of compiling


def _compile(
    make: Callable[[Sequence[str]], Mapping[str, Program]],
    order: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Compile the programs, for `_time` in the same process."""
    _compiled.clear()  # the programs of a measurement that was cut off
    gc.collect()
    jax.config.update("jax_enable_compilation_cache", False)
    for name, value in settings.items():
        if name != "platform":
            jax.config.update(name, value)
    programs = make(order)
    _compiled.update({name: programs[name] for name in order})


def _time(rounds: int, max_seconds: float | None, seed: int) -> dict[str, Any]:
    """Return what one process finds: the seconds of a step in each turn, and facts."""
    host = host_state()
    calls = {name: program.call for name, program in _compiled.items()}
    timed = interleaved_seconds(calls, rounds=rounds, max_seconds=max_seconds, seed=seed)
    found = {
        "seconds": {name: (x / _compiled[name].steps).tolist() for name, x in timed.items()},
        "facts": {name: dict(program.facts) for name, program in _compiled.items()},
        "host": host,
        "order": list(_compiled),
    }
    _compiled.clear()  # their arrays leave the device
    return found


def _compile_and_time(to_compile: Sequence[Any], how: Sequence[Any]) -> dict[str, Any]:
    _compile(*to_compile)
    return _time(*how)


def host_state() -> dict[str, Any]:
    """Return the processor, its caches, the threads to use, and the load averages of now."""
    caches = {}
    for index in sorted(_CACHES.glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        caches[f"L{level} {kind}"] = size
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    load = getattr(os, "getloadavg", None)  # Windows lacks it
    return {
        "cpu": cpu_model(),
        "caches": caches,
        "threads": len(affinity(0)) if affinity else os.cpu_count(),
        "load": [round(x, 2) for x in load()] if load else None,
    }


def seconds_over_processes(samples: Iterable[Sample], program: str) -> Interval:
    """Return the seconds of a step: the geometric mean over processes of the median over turns.

    The interval is Student's of the logarithms, n the number of processes; none for fewer than 3.
    """
    turns = _turns(samples, program)
    return geometric_mean_interval([float(np.median([*x.values()])) for x in turns.values()])


def ratio_over_processes(samples: Iterable[Sample], program: str, reference: str) -> Interval:
    """Return the ratio of two programs' seconds: that of each turn, its median, the mean of these.

    The mean over processes is geometric; the interval is Student's of the logarithms, n the number
    of processes; none for fewer than 3.

    Raises:
      ValueError: a turn of one program has none of the other.
    """
    samples = list(samples)
    turns, others = _turns(samples, program), _turns(samples, reference)
    medians = []
    for process, of_process in turns.items():
        of_reference = others.get(process, {})
        if of_process.keys() != of_reference.keys():
            raise ValueError(
                f"samples must have the same turns of {program} and of {reference} in process "
                f"{process}; found {len(of_process)} and {len(of_reference)}."
            )
        with np.errstate(all="ignore"):
            ratios = [np.divide(of_process[t], of_reference[t]) for t in of_process]
        medians.append(float(np.median(ratios)))
    return geometric_mean_interval(medians)


def _turns(samples: Iterable[Sample], program: str) -> dict[int, dict[int, float]]:
    """Return process -> turn -> seconds of a program."""
    found: dict[int, dict[int, float]] = {}
    names = set()
    for name, process, turn, seconds in samples:
        names.add(name)
        if name == program:
            found.setdefault(process, {})[turn] = seconds
    if not found:
        raise ValueError(f"program must be one of {', '.join(sorted(names))}; found {program}.")
    return found
