"""Layers of a loss: groups of parameters, the last group, and its exact gradient."""

from collections.abc import Sequence

import jax
import numpy as np

from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.sites import find_sites
from fwdgrad.propagation.jaxprs import evaluate, inlined
from fwdgrad.util import validation
from fwdgrad.util.trees import Array, PyTree, extract_leaves


class Layers:
    """The layers of a loss.

    Parameters that make one value together, such as weights and bias, are one layer. A layer is the
    last one if only the loss function follows its values. The arrays among the loss's positional
    arguments count as data, all other arrays as fixed.

    Args:
      loss: the loss, at its parameters.
      needed_by: what for, as an error says it.

    Attributes:
      groups: of each layer the indices of its parameters among the leaves, in the leaves' order;
        such as the loss does not depend on are the last group.
      is_last: of each leaf whether it is of the last layer alone.
    """

    def __init__(self, loss: Loss, *, needed_by: str):
        self._leaves = loss.theta
        self._data, frame = extract_leaves(
            loss.args, lambda x: isinstance(x, (jax.Array, np.ndarray))
        )

        def of_arrays(leaves: Sequence[Array], data: Sequence[Array]) -> tuple[Array, PyTree]:
            return loss.of(leaves, frame.rebuild(data))

        traced = loss.trace(of_arrays, self._leaves, self._data)
        self._program = inlined(traced.required(needed_by))
        sites = find_sites(self._program, len(self._leaves)).sites
        parameters = self._program.invars[: len(self._leaves)]
        are_last = [[x.is_last for x in sites if p in x.parameters] for p in parameters]
        self.is_last = [bool(found) and all(found) for found in are_last]
        self.groups = _joined(
            [[i for i, p in enumerate(parameters) if p in site.parameters] for site in sites],
            len(parameters),
        )

    def gradient_of_last(self) -> list[Array]:
        """Return the gradients by the leaves of the last layer; there must be one."""
        program = self._program

        def value(chosen: Sequence[Array]) -> Array:
            given = iter(chosen)
            both = zip(self._leaves, self.is_last, strict=True)
            leaves = [next(given) if is_chosen else x for x, is_chosen in both]
            values = program.environment([*leaves, *self._data])
            evaluate(program.eqns, values)
            return values[program.outvars[0]]

        both = zip(self._leaves, self.is_last, strict=True)
        with validation.exact_last_note("Weights"):
            return jax.grad(value)([x for x, is_chosen in both if is_chosen])


def _joined(together: Sequence[Sequence[int]], number: int) -> list[list[int]]:
    """Return the numbers below `number` in groups; numbers that are listed together share one.

    >>> _joined([[3, 4], [0, 1], [1], [3]], 5)
    [[0, 1], [3, 4], [2]]
    """
    groups: list[set[int]] = []
    for members in map(set, together):
        touched = [group for group in groups if group & members]
        groups = [group for group in groups if not group & members]
        groups.append(members.union(*touched))
    rest = set(range(number)).difference(*groups)
    return sorted(sorted(group) for group in groups) + ([sorted(rest)] if rest else [])
