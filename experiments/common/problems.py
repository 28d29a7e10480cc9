"""The problem of a `train` config: of the group `problem`, with those of `model` and `dataset`."""

import inspect
from functools import lru_cache
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.common import settings, vocabulary
from fwdgrad.problems import (
    Dataset,
    ImageSets,
    Problem,
    check_problem,
    load_dataset,
    standardised,
)

# The problem that names and identities of runs leave out: those of before there were others.
_IMAGES = {"_target_": "fwdgrad.problems.image_classification"}
_DEFAULTS = ("mlp", "mnist")  # of the groups model and dataset, for problems that read neither


def problem(cfg: DictConfig) -> Problem:
    """Return the problem of a `train` config; its data are cached.

    Its function is called with the arguments under `problem`, and, if it has arguments of these
    names, with `make_model`, the constructor of the group `model`, and `dataset`, an `ImageSets` of
    the group `dataset`.

    Raises:
      TypeError, ValueError: an argument is wrong, or the function returns no problem.
    """
    given = {"problem": cfg.problem}
    read = reads(cfg)
    if "make_model" in read:
        given["model"] = OmegaConf.to_container(cfg.model.make, resolve=True)
    if "dataset" in read:
        given["dataset"] = cfg.dataset
    return _problem(OmegaConf.to_yaml(OmegaConf.create(given), resolve=True))


@lru_cache(maxsize=1)
def _problem(text: str) -> Problem:
    given = OmegaConf.create(text)
    groups: dict[str, Any] = {}
    if "model" in given:
        with settings.named("model.make"):
            groups["make_model"] = instantiate(given.model, _convert_="all")
    if "dataset" in given:
        groups["dataset"] = _images(OmegaConf.to_yaml(given.dataset))
    made = _made("problem", given.problem, **groups)
    optional = Problem._field_defaults
    if missing := [x for x in Problem._fields if not (x in optional or hasattr(made, x))]:
        raise ValueError(
            f"problem._target_={given.problem._target_} must return a fwdgrad.problems.Problem, or "
            f"an object like it; found {type(made).__name__}, without {', '.join(missing)}."
        )
    if not hasattr(made, "loss"):
        parts: Any = (getattr(made, x, optional.get(x)) for x in Problem._fields)
        made = Problem(*parts)
    if not given.problem._target_.startswith("fwdgrad."):
        check_problem(made)
    return made


@lru_cache(maxsize=1)  # all models of a data set share its arrays
def _images(text: str) -> ImageSets:
    given: Any = OmegaConf.create(text)
    return standardised(dataset(given))


def dataset(cfg: DictConfig) -> Dataset:
    """Return the data set of the group `dataset`: of the library, or of the source it names."""
    if "source" not in cfg:
        return load_dataset(cfg.name, cfg.folder)
    return load_dataset(cfg.name, cfg.folder, _made("dataset.source", cfg.source))


def _made(key: str, cfg: DictConfig, **groups: Any) -> Any:
    """Return the result of a `_target_`, called with the other keys and with what groups give."""
    own = {name: x for name, x in cfg.items() if name != "_target_"}
    with settings.named(key):
        return _function(cfg._target_)(**groups, **instantiate(own, _convert_="all"))


def reads(cfg: DictConfig) -> set[str]:
    """Return the arguments of a problem's function that groups give.

    Raises:
      ValueError: there is no such function, or a chosen group gives it nothing.
    """
    with settings.named("problem._target_"):
        arguments = set(inspect.signature(_function(cfg.problem._target_)).parameters)
    for argument, group in (("make_model", "model"), ("dataset", "dataset")):
        if argument in arguments and group not in cfg:
            raise ValueError(f"problem={name(cfg)} takes a choice of {group}. Say {group}=NAME.")
        if argument not in arguments and cfg.get(group, {}).get("name") not in (None, *_DEFAULTS):
            raise ValueError(
                f"problem={name(cfg)} takes no choice of {group}: its function has no "
                f"argument {argument}. Leave out {group}={cfg[group].name}."
            )
    return arguments & {"make_model", "dataset"}


def _function(target: str) -> Any:
    try:
        return get_object(target)
    except Exception as error:  # whatever the module raises when it is imported
        raise ValueError(
            f"{target!r} cannot be imported ({type(error).__name__}: {error}). Name a function by "
            "its module, which is installed or in the folder of the command."
        ) from error


def is_default(cfg: DictConfig) -> bool:
    """Return whether the problem is the classification of images."""
    return bool(cfg.problem == _IMAGES)


def name(cfg: DictConfig) -> str:
    """Return the name of a problem."""
    return vocabulary.problem_name(cfg.problem._target_)
