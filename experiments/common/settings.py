"""Validation of configs: a wrong value raises an error that names the key."""

import math
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.common.keys import ARGUMENTS, CONSTRUCTOR, KEYS, OWN_DATASET
from experiments.common.kinds import EACH, TEXT, Kind

_FURTHER_IN = "estimator.value_and_grad, tangents.distribution, model.make or optimizer"


def check(cfg: DictConfig, config_name: str) -> None:
    """Raise an error unless every key of a config is known and has a value of its kind.

    Raises:
      ValueError: a key has a wrong value, is unknown, or is missing.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    known = KEYS[config_name]
    if "source" in (plain.get("dataset") or {}):
        known = {**known, **{key: OWN_DATASET for key in ("dataset", "dataset?") if key in known}}
    _check(plain, known, "")


def _check(value: Any, expected: Any, path: str) -> None:
    if expected is CONSTRUCTOR:
        _check_constructor(value, path)
    elif isinstance(expected, Kind):
        if not expected.accepts(value):
            remedy = expected.remedy.format(path=path, value=value)
            raise ValueError(f"{path} must be {expected.name}; found {_shown(value)}.{remedy}")
    elif not isinstance(value, dict):
        names = ", ".join(key.removesuffix("?") for key in expected if not key.startswith(EACH))
        inside = f"a mapping with {names}" if names else "a mapping"
        raise ValueError(f"{path} must be {inside}; found {_shown(value)}.")
    else:
        known = {key.removesuffix("?"): inner for key, inner in expected.items()}
        for key in expected:
            if not key.startswith(EACH) and not key.endswith("?") and key not in value:
                raise ValueError(f"the key {_join(path, key)} is missing.")
        # Constructors last: their arguments are often other keys' values, which are to be named.
        for key, inner in sorted(value.items(), key=lambda x: known.get(x[0]) is CONSTRUCTOR):
            if key not in known and EACH not in known:
                raise ValueError(
                    f"nothing reads the key {_join(path, key)}. If it is an option of a "
                    f"constructor, it belongs under {_FURTHER_IN}; what there is shows --cfg job."
                )
            _check(inner, known[key] if key in known else known[EACH], _join(path, key))


def _check_constructor(value: Any, path: str, known: Mapping[str, Kind] | None = None) -> None:
    """Check the arguments of a constructor: all finite, and known ones of their kind."""
    if isinstance(value, dict) and "_target_" in value:
        _check(value["_target_"], TEXT, f"{path}._target_")
        _check_target(value["_target_"], path)
        known = ARGUMENTS if value["_target_"].startswith(("fwdgrad.", "optax.")) else {}
    elif known is None:
        raise ValueError(f"{path} must be {CONSTRUCTOR.name}; found {_shown(value)}.")
    if isinstance(value, dict):
        for key, inner in value.items():
            constructed = isinstance(inner, dict) and "_target_" in inner
            if key in (known or {}) and not constructed:
                _check(inner, (known or {})[key], _join(path, key))
            else:
                _check_constructor(inner, _join(path, key), {})
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check_constructor(inner, f"{path}[{i}]", {})
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{path} must be finite; found {value}.")


def _check_target(target: str, path: str) -> None:
    """Raise ValueError if fwdgrad has no such name; the error gives the new one if it moved."""
    if target.startswith("fwdgrad."):
        try:
            pkgutil.resolve_name(target)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{path}._target_ is {target!r}, but {error}") from error


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} …"


def root(cfg: DictConfig) -> Path:
    """Return the folder `output.root`, with ~ for the home."""
    return Path(cfg.output.root).expanduser()


@contextmanager
def named(key: str) -> Iterator[None]:
    """Put the name of a config key before errors raised within.

    Raises:
      ValueError: a TypeError or ValueError was raised within.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error


# Arguments that configs have always written as floats.
_FLOATS = ("momentum",)
# An identity is the hash of a config, and those of recorded runs have these targets' first names in
# them. The names stay in the hash, so that a run keeps its identity and its folder.
_FIRST_NAMES = {
    f"fwdgrad.training.{name}": f"fwdgrad.work.{name}"
    for name in ("clip_by_running_quantile", "clipped_sgd", "exponential_decay")
}


def canonical(value: Any, key: str = "") -> Any:
    """Return a config in the form from which identities are hashed.

    Equal numbers, `1` and `1.0`, have one form; a renamed target has its first name.

    >>> canonical({"learning_rate": 1.0, "momentum": 0, "rates": [0.5, 2.0]})
    {'learning_rate': 1, 'momentum': 0.0, 'rates': [0.5, 2]}
    """
    if key == "_target_":
        return _FIRST_NAMES.get(value, value)
    if isinstance(value, dict):
        return {name: canonical(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [canonical(inner) for inner in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if key in _FLOATS:
        return float(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
