"""Resuming: checks that a recorded run is the same run, made by the same code."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fwdgrad.records import (
    JAX_DEFAULTS,
    CheckpointError,
    RunRecord,
    code_differences,
    jax_settings,
    read_about,
    read_info,
    read_run,
    warn_of_other_code,
)
from fwdgrad.training.run_settings import Settings


class DivergedError(FloatingPointError):
    """A loss that is not finite."""


def finished_run(
    folder: Path,
    *,
    seed: int | None = None,
    settings: Settings | None = None,
    sources: Sequence[Path] = (),
) -> RunRecord | None:
    """Return the record of the run in `folder` if it has finished, else None.

    Args:
      folder: the run's folder.
      seed, settings: required seed and settings; settings of JAX are compared, too.
      sources: as for `train`.

    Raises:
      DivergedError: it has diverged, with the message of that time.
      RecordError: a file of the run is damaged or lost.
      ValueError: it is another run.

    Warns:
      OtherCodeWarning: it was made with other code or other versions.
    """
    info = read_info(folder)
    if info is None:
        return None
    if seed is not None and settings is not None:
        check_same_run(folder, info, {"seed": seed, "settings": asdict(settings)})
    if info["status"] == "running":
        return None
    warn_of_other_code("Runs", info, sources, "To run one once more, delete its folder.")
    if info["status"] == "diverged":
        raise DivergedError(info["message"])
    return read_run(folder)


def check_same_run(folder: Path, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError if a recorded run has another seed, other settings or settings of JAX.

    Args:
      folder: the run's folder.
      before: the recorded seed, settings and `jax`; old records without `jax` count as runs under
        JAX's defaults.
      wanted: seed and settings.
    """
    found = {"seed": before["seed"], **before["settings"], **JAX_DEFAULTS, **before.get("jax", {})}
    if "jax" not in before and "hardware" in before:
        found["platform"] = before["hardware"]["device"]
    expected = {"seed": wanted["seed"], **wanted["settings"], **jax_settings()}
    names = [name for name in expected if found.get(name) != expected[name]]
    if names:
        has, wants = (", ".join(f"{k} {x.get(k)}" for k in names) for x in (found, expected))
        raise ValueError(
            f"folder {folder} holds another run, with {has}; wanted is {wants}. Name another "
            "folder, or delete this one."
        )


def check_checkpoint(
    folder: Path, wanted: Mapping[str, Any], sources: Sequence[Path], accept_other_code: bool
) -> dict[str, Any] | None:
    """Return the `about` of a run's checkpoint, checked; None if there is no checkpoint.

    Raises:
      CheckpointError: it is damaged, or of a run of another seed or settings.
      ValueError: other code or versions wrote it, and that is not accepted.
    """
    about = read_about(folder)
    if about is None:
        return None
    try:
        check_same_run(folder, about, wanted)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint is of another run: {error}") from error
    if not accept_other_code and (found := code_differences(about["sources"][-1], sources)):
        raise ValueError(
            f"the run in {folder} was begun with other code or versions: {found}. Go back to them "
            f"to finish it, delete the folder {folder} to start it from the beginning, or accept "
            "a run that two versions have made: accept_other_code=True "
            "(on the command line output.accept_other_code=true)."
        )
    return about
