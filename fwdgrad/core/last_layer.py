"""The parameters that nothing but the loss function follows, and the exact gradient by them."""

from collections.abc import Sequence

import jax
import numpy as np

from fwdgrad.core import checks
from fwdgrad.core.jaxprs import evaluate, inlined
from fwdgrad.core.losses import Flat, Loss
from fwdgrad.core.sites import find_sites
from fwdgrad.core.trees import Array, PyTree, combine, split


class LastLayer:
    """A loss, as a function of the parameters of its last layer.

    These are the leaves that are used for last sites alone, so the gradient by them goes back
    through the loss function and one layer. The arrays among the loss's positional arguments are
    what tells data from what is fixed. Functions defined by `jax.custom_vjp` are entered here too.

    Attributes:
      contains: of each leaf of the parameters whether it is one of them.
    """

    def __init__(self, loss: Loss, enter_custom_vjp: bool):
        self._leaves, structure = jax.tree.flatten(loss.theta)
        self._data, others = split(loss.args, lambda x: isinstance(x, (jax.Array, np.ndarray)))

        def of_arrays(leaves: Sequence[Array], data: PyTree) -> tuple[Array, PyTree]:
            return loss.of(jax.tree.unflatten(structure, leaves), combine(data, others))

        needed_by = "space=Weights(exact_last=True)"
        traced = checks.checked_jaxpr(
            Flat(of_arrays), self._leaves, self._data, needed_by=needed_by
        )
        self._closed = inlined(traced, enter_custom_vjp)
        jaxpr = self._closed.jaxpr
        sites = find_sites(jaxpr, len(self._leaves)).sites
        are_last = [
            [site.is_last for site in sites if parameter in site.parameters]
            for parameter in jaxpr.invars[: len(self._leaves)]
        ]
        self.contains = [bool(found) and all(found) for found in are_last]

    def gradient(self) -> list[Array]:
        """The gradients by its leaves, of which there must be one; no others are computed."""
        jaxpr = self._closed.jaxpr

        def value(chosen: Sequence[Array]) -> Array:
            given = iter(chosen)
            both = zip(self._leaves, self.contains, strict=True)
            leaves = [next(given) if is_chosen else x for x, is_chosen in both]
            values = dict(zip(jaxpr.constvars, self._closed.consts, strict=True))
            inputs = [*leaves, *jax.tree.leaves(self._data)]
            values.update(zip(jaxpr.invars, inputs, strict=True))
            evaluate(jaxpr.eqns, values)
            return values[jaxpr.outvars[0]]

        both = zip(self._leaves, self.contains, strict=True)
        return jax.grad(value)([x for x, is_chosen in both if is_chosen])
