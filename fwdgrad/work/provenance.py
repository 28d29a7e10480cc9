"""Where a number comes from: the code, the package versions and the hardware."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    *("jax", "jaxlib", "numpy", "optax", "equinox", "hydra-core", "matplotlib", "sympy"),
    "fwdgrad",
)


def provenance() -> dict[str, Any]:
    """The commit, versions and hardware of this process, as plain values for `run.json`.

    `commit` and `dirty` are None where the code does not lie in a git checkout; `dirty` says
    whether any file that git does not ignore, results apart, differs from the commit.
    """
    return {"code": _code(), "versions": _versions(), "hardware": _hardware()}


def _code() -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":!results")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


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
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _hardware() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "device": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
