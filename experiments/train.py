"""Trains one model with one estimator: python -m experiments.train model=mlp estimator=forward

Any key of configs/train.yaml can be set on the command line, and `-m` makes a sweep of lists:

    python -m experiments.train -m seed=0,1,2 estimator=forward,backprop num_steps=2000

A run that was interrupted goes on when it is started again; a finished one is not repeated.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fwdgrad.problems import Problem, image_classification, load_dataset
from fwdgrad.work import (
    RunRecord,
    Settings,
    config_identity,
    finished_run,
    read_run,
    run_folder,
    train,
)

SETTINGS = ("num_steps", "batch_size", "eval_every", "steps_per_call", "compiler_options")


def run(cfg: DictConfig) -> RunRecord:
    """Runs a composed `train` config, or goes on with it, or returns what is already there."""
    if (record := finished_run(folder(cfg))) is not None:
        return record
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    learning_rate = cfg.optimizer.learning_rate  # a schedule's config, or a number
    if isinstance(learning_rate, DictConfig):
        learning_rate = instantiate(learning_rate)
    return train(
        problem(cfg),
        instantiate(cfg.estimator.value_and_grad, _convert_="all"),
        instantiate(cfg.optimizer, learning_rate=learning_rate, _convert_="all"),
        learning_rate if callable(learning_rate) else lambda step: learning_rate,
        Settings(**{key: config[key] for key in SETTINGS}),
        seed=cfg.seed,
        folder=folder(cfg),
        config=OmegaConf.to_yaml(cfg, resolve=True),
        checkpoint_seconds=cfg.output.checkpoint_seconds,
        show_progress=cfg.output.progress,
    )


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The information of a run that was begun, also of one that diverged."""
    record = read_run(folder(cfg))
    assert record is not None
    return record.info


def summary(record: RunRecord) -> str:
    """A finished run in one line."""
    final = record.info["final"]
    label = record.folder.parent.name.rpartition("-")[0]
    return (
        f"{label} seed {record.info['seed']}: {final['step']} steps in {final['seconds']:.1f} s, "
        f"train loss {final['train_loss']:.4f}, valid loss {final['valid_loss']:.4f}, "
        f"valid accuracy {final['valid_accuracy']:.4f}, test accuracy {final['test_accuracy']:.4f}"
    )


def folder(cfg: DictConfig) -> Path:
    """Where a run is recorded: named after model, estimator, what decides the numbers, and seed."""
    label = f"{cfg.model.name}-{cfg.estimator.label}"
    return run_folder(cfg.output.root, label, config_identity(identifying(cfg)), cfg.seed)


def identifying(cfg: DictConfig) -> dict[str, Any]:
    """The part of a config that decides a run's numbers: all but the seed and the names."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return {
        "model": config["model"]["make"],
        "dataset": config["dataset"],
        "estimator": config["estimator"]["value_and_grad"],
        "optimizer": config["optimizer"],
        **{key: config[key] for key in SETTINGS},
    }


def problem(cfg: DictConfig) -> Problem:
    """The problem of a `train` config; the same object as before if nothing has changed."""
    make = OmegaConf.to_yaml(cfg.model.make, resolve=True)
    return _problem(make, cfg.dataset.name, cfg.dataset.folder)


@lru_cache(maxsize=1)
def _problem(make: str, dataset: str, folder: str | None) -> Problem:
    make_model = instantiate(OmegaConf.create(make), _convert_="all")
    return image_classification(make_model, load_dataset(dataset, folder))


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> None:
    record = run(cfg)
    print(f"{summary(record)}\nrecorded in {record.folder}")


if __name__ == "__main__":
    main()
