"""Kinds of values of a config's keys: the values accepted, and a name for errors."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

EACH = "*"  # in a table of keys, any name


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
      name: in an error, after "must be".
      accepts: the value, as plain lists, dicts, numbers and texts -> whether it is of this kind.
      remedy: a sentence on how to write it; `{path}` is the key, `{value}` what was found.
    """

    name: str
    accepts: Callable[[Any], bool]
    remedy: str = ""


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def integer(least: int, most: int | None = None) -> Kind:
    """Return the kind of integers from `least` to `most`, or without an end."""
    if most is None:
        return Kind(f"an integer of at least {least}", lambda x: _is_integer(x) and x >= least)
    return Kind(
        f"an integer from {least} to {most}", lambda x: _is_integer(x) and least <= x <= most
    )


def number(name: str, accepts: Callable[[float], bool] = lambda x: True) -> Kind:
    """Return the kind of finite numbers that meet a condition."""
    return Kind(name, lambda x: _is_number(x) and math.isfinite(x) and accepts(x))


def optional(kind: Kind) -> Kind:
    """Return the kind of values of another kind, or null."""
    return kind._replace(
        name=f"{kind.name}, or null", accepts=lambda x: x is None or kind.accepts(x)
    )


def either(first: Kind, second: Kind) -> Kind:
    """Return the kind of values of one of two kinds."""
    return Kind(f"{first.name}, or {second.name}", lambda x: first.accepts(x) or second.accepts(x))


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """Return the kind of lists, of one length or of any."""
    many = "a list" if length is None else f"a list of {length} entries"
    return Kind(
        f"{many}, of which each is {kind.name}",
        lambda x: (
            isinstance(x, list)
            and length in (None, len(x))
            and all(kind.accepts(entry) for entry in x)
        ),
    )


def one_of(names: Iterable[str]) -> Kind:
    """Return the kind of a few names."""
    names = list(names)
    return Kind(f"one of {', '.join(names)}", lambda x: isinstance(x, str) and x in names)


def mapping(keys: Mapping[str, Kind]) -> Kind:
    """Return the kind of mappings with these keys; one that ends in ? may be left out."""
    needed = {key for key in keys if not key.endswith("?")}
    kinds = {key.removesuffix("?"): kind for key, kind in keys.items()}

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and needed <= set(value) <= set(kinds)
            and all(kinds[key].accepts(entry) for key, entry in value.items())
        )

    described = ", ".join(f"{key} ({kind.name})" for key, kind in kinds.items())
    return Kind(f"a mapping with {described}", accepts)


BOOLEAN = Kind("true or false", lambda x: isinstance(x, bool))
COUNT, POSITIVE_INTEGER = integer(0), integer(1)
SEED = integer(0, 2**32 - 1)  # jax.random.key drops the upper bits of larger ones
STEPS = integer(1, 2**31 - 1)  # they are counted in int32
NUMBER = number("a finite number")
POSITIVE = number("a positive number", lambda x: x > 0)
NOT_NEGATIVE = number("a number of at least 0", lambda x: x >= 0)
FRACTION = number("a number from 0 to 1", lambda x: 0 <= x <= 1)
SECONDS = Kind("a number of seconds, of at least 0", lambda x: _is_number(x) and x >= 0)
TEXT = Kind("a text", _is_text)
NAME = Kind(
    "a name, a text without / and \\", lambda x: _is_text(x) and "/" not in x and "\\" not in x
)
SUFFIX = Kind("a text without / and \\", lambda x: x == "" or NAME.accepts(x))
PATH = Kind("a path, as text", _is_text, " Of a folder with that name write {path}=./{value}.")
OVERRIDES = list_of(Kind("an override of train.yaml, KEY=VALUE", _is_text))
OPTIONS = optional(Kind("a mapping of XLA's options", lambda x: isinstance(x, dict)))
