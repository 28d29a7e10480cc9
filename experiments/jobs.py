"""What the experiments share: their progress bars, and where their numbers come from."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

_SOURCES = ("code", "versions", "hardware")


def progress(jobs: Sequence[Any], cfg: DictConfig, name: str) -> tqdm:
    """A bar over the jobs of an experiment; `output.progress` null: if there is a terminal."""
    hidden = None if cfg.output.progress is None else not cfg.output.progress
    return tqdm(jobs, desc=name, unit="job", leave=False, disable=hidden)


def train_config(cfg: DictConfig, name: str, panel: str, line: str, **values: Any) -> DictConfig:
    """The `train` config of a run of an experiment's panel and line, with values of its own."""
    experiment = cfg.experiments[name]
    overrides = [*experiment.panels[panel].overrides, *experiment.lines[line]]
    return compose_train(cfg, overrides, **values)


def compose_train(cfg: DictConfig, overrides: Iterable[str], **values: Any) -> DictConfig:
    """The `train` config of a run with overrides and values, kept among those of `cfg`."""
    output = cfg.output
    return hydra.compose(
        "train",
        overrides=[
            *overrides,
            *(f"{key}={value}" for key, value in values.items()),
            f"output.root={output.root}/runs",
            f"output.progress={'null' if output.progress is None else output.progress}",
            f"output.checkpoint_seconds={output.checkpoint_seconds}",
        ],
    )


def plain(config: Any) -> Any:
    """A part of a config as plain lists, dicts and values."""
    return OmegaConf.to_container(config, resolve=True)


def differences(settings: Mapping[str, Any], but_for: Iterable[str] = ()) -> str:
    """In what settings differ from those under their key `full`, in words: '' if in nothing."""
    found = []
    for key, expected in settings["full"].items():
        if key not in but_for and (value := settings[key]) != expected:
            texts = (f"{x:,}" if isinstance(x, int) else str(x) for x in (value, expected))
            found.append("{} is {}, not {}".format(key.replace("_", " "), *texts))
    return "; ".join(found)


def alone(cfg: DictConfig, experiment: Any) -> None:
    """One experiment of a `reproduce` config by itself: the module with `run` and `draw`."""
    folder = Path(cfg.output.root)
    if not cfg.draw_only:
        experiment.run(cfg, folder)
    experiment.draw(folder)
    print(f"drawn in {folder}")


def sources(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Where records come from: each source once, and how long making them all took."""
    records = list(records)
    every = [{key: record[key] for key in _SOURCES} for record in records]
    return {
        "provenance": [s for i, s in enumerate(every) if s not in every[:i]],
        "wall_seconds": sum(record["wall_seconds"] for record in records),
    }
