"""Processes to measure in: fresh ones, or some that all measurements share."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import jax


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments), called in a new process that ends afterwards.

    Raises:
      RuntimeError: the process was killed.
    """
    with _error_if_killed(), _one_process() as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def shared_processes() -> Iterator[None]:
    """Take the same processes for all measurements by `time_in_processes`.

    Process i of each measurement is process i of all: within a measurement the processes are as
    independent as ever, two measurements are not. They compile at the same time, and are timed one
    after the other. A program may be compiled faster after an earlier measurement, since the
    compiler may know the fastest kernels of a GPU by then, and slower beside the others; the
    kernels that it times for its choice are timed beside theirs, so it may choose others. The
    records say how many measurements a process has made `before`, and `beside` how many others.
    """
    global _shared
    outer, _shared = _shared, _Processes()
    try:
        yield
    finally:
        _shared.end()
        _shared = outer


def shared() -> "_Processes | None":
    """Return the processes of `shared_processes`; None outside of it."""
    return _shared


class _Processes:
    """Processes that make one measurement after another."""

    def __init__(self) -> None:
        self._pools: dict[int, ProcessPoolExecutor] = {}
        self._made: dict[int, int] = {}  # process -> its measurements
        self._beside = 0

    def start(self, number: int, make: Any) -> None:
        """Start the processes that are missing, all at once, and wait until they are up.

        They import the module of `make`, which takes some of the seconds, and open the device.
        """
        missing = set(range(number)) - self._pools.keys()
        for process in missing:
            self._pools[process], self._made[process] = _one_process(), 0
        self._results(dict.fromkeys(missing, (_open, make)))

    def call_at_once(
        self, function: Callable[..., None], arguments: Sequence[Sequence[Any]]
    ) -> None:
        """Call function(*arguments[i]) in process i of each i, at the same time."""
        self._beside = len(arguments) - 1
        self._results({i: (function, *of_process) for i, of_process in enumerate(arguments)})

    def call(self, process: int, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Return function(*arguments) of a process, and what `shared_processes` records of it."""
        about = {"before": self._made[process]} if self._made[process] else {}
        if self._beside:
            about["beside"] = self._beside
        result = self._results({process: (function, *arguments)})[process]
        self._made[process] += 1
        return {**result, **about}

    def _results(self, calls: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Return the results of calls in several processes, at the same time.

        All are waited for. Processes that were killed are replaced in the next measurement.
        """
        results, futures = {}, {}
        errors: dict[int, Exception] = {}
        for process, call in calls.items():
            try:
                futures[process] = self._pools[process].submit(*call)
            except BrokenProcessPool as error:
                errors[process] = error
        for process, future in futures.items():
            try:
                results[process] = future.result()
            except Exception as error:  # of the called function, or of a process that was killed
                errors[process] = error
        killed = [i for i, error in errors.items() if isinstance(error, BrokenProcessPool)]
        for process in killed:
            del self._pools[process]
        if errors:
            with _error_if_killed():
                raise errors[(killed or list(errors))[0]]
        return results

    def end(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)


_shared: _Processes | None = None


def _open(make: Any) -> None:
    """Open the device; the module of `make` has been imported to read the argument."""
    jax.devices()


def _one_process() -> ProcessPoolExecutor:
    # The processes of a measurement share an accelerator with the one that starts them.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """End this process when the one that started it ends, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _error_if_killed() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that measures was killed, perhaps since memory ran out. Measure fewer or "
            "smaller programs at once."
        ) from error
