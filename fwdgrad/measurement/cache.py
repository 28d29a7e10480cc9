"""A cache of measurements on disk: each is made once, and read back the next time."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fwdgrad.records import (
    RecordError,
    config_identity,
    hold,
    provenance,
    read_json,
    warn_of_other_code,
    with_changed_settings,
    write_json,
)

_KEYS = ("config", "result", "wall_seconds", "code", "versions", "hardware")


def measured_once(
    folder: Path, label: str, config: Mapping[str, Any], measure: Callable[[], Any]
) -> dict[str, Any]:
    """Return the record of a measurement: read from `folder`, or made by `measure`.

    The record is the file `<folder>/<label>-<hash of the config>.json`, with `config`, `result`,
    `wall_seconds` and provenance (`code`, `jax`, `versions`, `hardware`). Settings of JAX that
    decide numbers are part of the config if they are not JAX's own. Delete the file to measure once
    more.

    Args:
      folder: the folder of the record.
      label: the beginning of the file's name.
      config: plain values that identify the measurement.
      measure: makes the measurement; returns plain values.

    Raises:
      RecordError: the file is damaged, or of another config.
      FolderInUseError: another process measures in `folder`, and would disturb the times.

    Warns:
      OtherCodeWarning: it was measured with other code or other versions.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first = measured_once(Path(folder), "a", {"n": 1}, lambda: [1.5])
    ...     again = measured_once(Path(folder), "a", {"n": 1}, lambda: [2.5])
    >>> first["result"], again == first
    ([1.5], True)
    """
    identifying = with_changed_settings(dict(config))
    identity = config_identity(identifying)
    path = folder / f"{label}-{identity}.json"
    if not path.exists():
        with hold(folder):
            if not path.exists():  # nor has another process just written it
                start = time.monotonic()
                result = measure()
                seconds = time.monotonic() - start
                record = {"config": identifying, "result": result, "wall_seconds": seconds}
                write_json(path, {**record, **provenance()})
    record = read_json(path, _KEYS)
    if record["config"] != json.loads(json.dumps(identifying)):
        raise RecordError(f"{path} is of another config than its name. Delete it to measure again.")
    warn_of_other_code("Measurements", record, remedy="To measure once more, delete their files.")
    return record
