"""The compiled programs that runs share."""

from collections.abc import Callable
from typing import Any


class Programs:
    """The compiled programs of runs that differ in their seeds alone, and so share them.

    The first `train` with such an object compiles; the others take its programs, and record a
    `compile_seconds` of 0.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] | None = None
        self._made: dict[str, Any] = {}

    def check(self, settings: Any, *objects: Any) -> None:
        """Raise ValueError unless settings and objects are those of the first call."""
        if self._of is None:
            self._of = settings, *objects
        first, *others = self._of
        if first != settings or any(x is not y for x, y in zip(others, objects, strict=True)):
            raise ValueError(
                "programs must be of one problem, estimator, optimizer and settings; found others "
                "than those that they were compiled for. Make a Programs() for each."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._made

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the program of this name; make it the first time."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
