"""Measurements that are made once: what was measured is kept, and read back the next time."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fwdgrad.work.provenance import provenance
from fwdgrad.work.records import config_identity, read_json, write_json


def measured_once(
    folder: Path, label: str, config: Mapping[str, Any], measure: Callable[[], Any]
) -> dict[str, Any]:
    """What `measure` returns, from `folder` if it has been measured before.

    It is kept as `<folder>/<label>-<hash of the config>.json`, which holds `config`, `result`,
    `wall_seconds` and where it comes from (`code`, `versions`, `hardware`); that dict is returned.
    Delete the file to measure once more.

    Args:
      folder: where it is kept.
      label: the beginning of the file's name.
      config: plain values that decide what is measured.
      measure: makes the measurement; returns plain values.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = measured_once(Path(folder), "a", {"n": 1}, lambda: [1.5])
    ...     again = measured_once(Path(folder), "a", {"n": 1}, lambda: [2.5])
    >>> first["result"], again == first
    ([1.5], True)
    """
    path = folder / f"{label}-{config_identity(config)}.json"
    if not path.exists():
        start = time.monotonic()
        result = measure()
        seconds = time.monotonic() - start
        record = {"config": dict(config), "result": result, "wall_seconds": seconds}
        write_json(path, {**record, **provenance()})
    return read_json(path)
