"""The commit that fixed the protocol of a comparison, of the code that made its runs."""

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
# The experiments that follow configs/protocol.yaml, and the configs that their own builds on.
EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "fair_comparison": (),
    "accuracy_race": (),
    "cnn_race": (),
    "sum_race": ("accuracy_race",),
    "sum_race_long": ("sum_race", "accuracy_race"),
    "sum_race_shifted": ("sum_race", "accuracy_race"),
    "sum_race_deep": ("sum_race", "accuracy_race"),
    "sum_race_cnn": ("cnn_race",),
    "cnn_race_long": ("sum_race_cnn", "cnn_race"),
    "optimizer_race": (),
    "scaling_laws": (),
    "perturbed_weights": (),
}


def fixed_by(name: str, provenance: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the commits that had last changed an experiment's protocol when its runs were made.

    Args:
      name: of `EXPERIMENTS`.
      provenance: sources of records, each with the commit of its code.
    """
    configs = (name, *EXPERIMENTS[name])
    files = ("configs/protocol.yaml", *(f"configs/experiment/{x}.yaml" for x in configs))
    commits = dict.fromkeys(source["code"].get("commit") for source in provenance)
    found = [_last_change(commit, files) for commit in commits if commit]
    return list(dict.fromkeys(filter(None, found)))


def _last_change(commit: str, files: Iterable[str]) -> str:
    """Return the last commit up to `commit` that changed one of the files; "" if git cannot say."""
    command = ["git", "-C", str(_ROOT), "log", "-1", "--format=%H", commit, "--", *files]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
