"""Provenance of a number: code, settings of JAX, versions and hardware."""

import os
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from fwdgrad.records.jax_settings import default_platform, jax_settings, xla_flags
from fwdgrad.records.sources import source_sum

_PACKAGES = (
    *("jax", "jaxlib", "numpy", "optax", "equinox", "hydra-core", "matplotlib", "sympy"),
    "fwdgrad",
)
# Packages that compute: another version may round, draw or update in another way.
_COMPUTING = ("jax", "jaxlib", "numpy", "optax", "equinox")


class OtherCodeWarning(UserWarning):
    """A record is used again that other code made, or other versions of packages."""


def provenance(sources: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the code, settings of JAX, versions and hardware of this process, as plain values.

    `commit` and `dirty` are None outside of a git checkout. `dirty` is true if a file that git does
    not ignore, results apart, differs from the commit. `sum` is the hash of the code itself
    (`fwdgrad.records.sources`).

    Args:
      sources: Python files besides those of fwdgrad whose code makes the numbers.
    """
    return {
        "code": dict(_code(tuple(sources))),
        "jax": {**jax_settings(), "xla_flags": xla_flags()},
        "versions": _versions(),
        "hardware": _hardware(),
    }


def code_differences(before: Mapping[str, Any], sources: Sequence[Path] = ()) -> str:
    """Describe how code and versions of a record differ from this process's; '' if not.

    Args:
      before: a record with the entries of `provenance`, or of an earlier version.
      sources: as in `provenance`.
    """
    code, versions, jax_before = (before.get(key) or {} for key in ("code", "versions", "jax"))
    now, found = _code(tuple(sources)), []
    key = "sum" if code.get("sum") else "commit"  # all that records from before sums have
    if code.get(key) != now[key]:
        found.append(f"code of {_commit(code)}, now {_commit(now)}")
    for package in _COMPUTING:
        was, installed = versions.get(package), _version(package)
        if package in versions and was != installed:
            found.append(f"{package} {was}, now {installed}")
    if jax_before.get("xla_flags", xla_flags()) != xla_flags():
        found.append(f"XLA_FLAGS '{jax_before['xla_flags']}', now '{xla_flags()}'")
    return "; ".join(found)


def warn_of_other_code(
    kind: str, before: Mapping[str, Any], sources: Sequence[Path] = (), remedy: str = ""
) -> None:
    """Warn if a record that is used again was made by other code or other versions.

    Args:
      kind: the record's kind, in the plural.
      before, sources: as in `code_differences`.
      remedy: the end of the message.
    """
    # No file is named, so that the same words, of many records, are printed once.
    if differences := code_differences(before, sources):
        warnings.warn(
            f"{kind} from before are used, made with other code or versions: {differences}. "
            f"{remedy}",
            OtherCodeWarning,
            stacklevel=2,
        )


def _commit(code: Mapping[str, Any]) -> str:
    commit = (code.get("commit") or "")[:10]
    changed = " with uncommitted changes" if code.get("dirty") else ""
    return f"commit {commit or 'unknown'}{changed} (sum {code.get('sum') or 'not recorded'})"


@lru_cache  # the process runs the code that it started with, even if files change
def _code(sources: tuple[Path, ...]) -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!results")
    dirty = None if changes is None else bool(changes)
    return {"commit": commit, "dirty": dirty, "sum": source_sum(sources)}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed; a checkout further up is another project's
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions.update({package: _version(package) for package in _PACKAGES})
    return versions


@lru_cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    device = jax.devices(default_platform())[0]
    return {
        "device": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "cpu": cpu_model(),
        "cpu_cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
