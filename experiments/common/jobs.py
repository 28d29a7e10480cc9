"""Running an experiment: progress bar, composed configs, checked tables, provenance."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from experiments.common import budget, protocol, settings
from fwdgrad.records import RecordError, read_json, read_table, table_sum, write_json

_SOURCES = ("code", "jax", "versions", "hardware")  # "jax" is not in old records


def progress(jobs: Sequence[Any], cfg: DictConfig, name: str) -> tqdm:
    """Return a progress bar over the jobs; `output.progress` null shows it on a terminal alone."""
    hidden = None if cfg.output.progress is None else not cfg.output.progress
    return tqdm(jobs, desc=name, unit="job", leave=False, disable=hidden)


def train_config(cfg: DictConfig, name: str, panel: str, line: str, **values: Any) -> DictConfig:
    """Return the `train` config of an experiment's panel and line, with `values` set."""
    experiment = cfg.experiments[name]
    overrides = [*experiment.panels[panel].overrides, *experiment.lines[line]]
    return compose_train(cfg, overrides, **values)


def compose_train(cfg: DictConfig, overrides: Iterable[str], **values: Any) -> DictConfig:
    """Return the `train` config of `overrides` with `values` set, its runs in the root of `cfg`."""
    config = copy.deepcopy(_composed(GlobalHydra.instance().hydra, tuple(overrides)))
    for key, value in values.items():
        OmegaConf.update(config, key, value)
    output = {**to_plain(cfg.output), "root": literal(str(settings.root(cfg) / "runs"))}
    OmegaConf.update(config, "output", output, force_add=True)
    return config


@lru_cache(maxsize=128)
def _composed(session: Any, overrides: tuple[str, ...]) -> DictConfig:
    """Return the `train` config of these overrides, composed once in a session of Hydra."""
    return hydra.compose("train", overrides=list(overrides))


def literal(text: str) -> str:
    """Return a text as a value of a config, with interpolations escaped.

    >>> OmegaConf.create({"root": literal("a${b}")}).root
    'a${b}'
    """
    return re.sub(r"(\\*)\$\{", lambda match: rf"{2 * match.group(1)}\${{", text)


def to_plain(config: Any) -> Any:
    """Return a part of a config as plain lists, dicts and values."""
    return OmegaConf.to_container(config, resolve=True)


def differences(settings: Mapping[str, Any], but_for: Iterable[str] = ()) -> str:
    """Describe how settings differ from those under their key `full`; '' if not.

    >>> full = {"overrides": ["model=mlp"], "num_steps": 20000}
    >>> differences({"overrides": ["model=cnn"], "num_steps": 200, "full": full})
    'other settings; num steps is 200, not 20,000'
    """
    found = []
    for key, expected in settings["full"].items():
        if key not in but_for and (value := settings[key]) != expected:
            name = key.replace("_", " ")
            if isinstance(expected, Sequence) and not isinstance(expected, str):
                found.append(f"other {'settings' if key == 'overrides' else name}")
                continue
            texts = (f"{x:,}" if isinstance(x, int) else str(x) for x in (value, expected))
            found.append("{} is {}, not {}".format(name, *texts))
    return "; ".join(found)


def check_recorded(folder: Path, names: Iterable[str]) -> None:
    """Raise an error if a folder holds no record of these experiments.

    Raises:
      FileNotFoundError: there is no such folder, or no record of them in it.
    """
    files = [f"{name}.json" for name in names]
    if not any((folder / file).exists() for file in files):
        lacks = f"no {' or '.join(files)}" if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"draw_only=true finds nothing to draw in output.root={folder}: {lacks}. Name the "
            "folder of a preset that has run, or leave draw_only out."
        )


def write_information(
    folder: Path, name: str, tables: Iterable[str], information: Mapping[str, Any]
) -> None:
    """Write an experiment's information beside its tables, with a sum of each table.

    Args:
      folder: the folder of the tables.
      name: the name of the file, without `.json`.
      tables: the tables' names, without `.csv`.
      information: plain values, with the entry `provenance`.
    """
    if name in protocol.EXPERIMENTS:
        fixed = protocol.fixed_by(name, information["provenance"])
        information = {**information, "protocol": fixed}
    write_json(
        folder / f"{name}.json",
        {
            **information,
            **budget.present().information(),
            "tables": {table: _sum(folder, table) for table in tables},
        },
    )


def check_tables(folder: Path, name: str) -> None:
    """Raise an error if a table of an experiment has changed since it was written.

    Raises:
      RecordError: a table is lost, or has other lines than when it was written.
    """
    for path in sorted(folder.glob(f"{name}*.json")):
        # Those of earlier versions have no sums.
        for table, known in (
            read_json(path, ["provenance", "wall_seconds"]).get("tables", {}).items()
        ):
            if not (folder / f"{table}.csv").exists() or _sum(folder, table) != known:
                raise RecordError(
                    f"{folder / table}.csv is not the table that {path.name} was written with: it "
                    "was cut, changed or lost. Restore it, or run the experiment again without "
                    "draw_only, which makes it from the finished runs."
                )


def _sum(folder: Path, table: str) -> str:
    rows = read_table(folder / f"{table}.csv")
    return table_sum(rows[0] if rows else (), (row.values() for row in rows))


def provenance_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the provenance of records, each source once, and the time of making them all."""
    records = list(records)
    processes = [process for record in records for process in (*record.get("earlier", ()), record)]
    every = [{key: process[key] for key in _SOURCES if key in process} for process in processes]
    return {
        "provenance": [s for i, s in enumerate(every) if s not in every[:i]],
        "wall_seconds": sum(record["wall_seconds"] for record in records),
    }
