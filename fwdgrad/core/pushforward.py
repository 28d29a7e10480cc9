"""The pushforward of a loss: traced once, then evaluated with tangents in any form."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.core.factored import Factored, Split, Tangent, dense
from fwdgrad.core.jaxprs import uses_references
from fwdgrad.core.propagation import Context, Observer, jvp, propagate
from fwdgrad.core.rules import RULES
from fwdgrad.core.splits import Use, choose_split, find_uses
from fwdgrad.core.trees import Array, PyTree, combine, split


class Pushforward:
    """A loss at given parameters, ready to be evaluated along tangents.

    A loss that cannot be traced, because its Python code asks for the value of a parameter, or that
    works with mutable arrays, is pushed forward by `jax.jvp` as a whole, with its tangents written
    out.

    Attributes:
      names: of the leaves, 'params' and the path.
      jaxpr: the loss's ClosedJaxpr, or None if it is pushed forward as a whole.
    """

    def __init__(self, loss: Callable[[PyTree], tuple[Array, PyTree]], theta: PyTree):
        paths, self._structure = jax.tree_util.tree_flatten_with_path(theta)
        self.names = [f"params{jax.tree_util.keystr(path)}" for path, _ in paths]
        self._leaves = [leaf for _, leaf in paths]
        self._loss = loss
        self._rest_of_aux: PyTree = None
        self.jaxpr: Any
        try:
            self.jaxpr = jax.make_jaxpr(self._flat)(*self._leaves)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            self.jaxpr = None
        self._uses_references = self.jaxpr is not None and uses_references(self.jaxpr.jaxpr)
        if self._uses_references:
            self.jaxpr = None

    def _flat(self, *leaves: Array) -> list[Array]:
        """The loss and the arrays of aux; what else aux may hold is put aside."""
        value, aux = self._loss(jax.tree.unflatten(self._structure, leaves))
        arrays, self._rest_of_aux = split(aux, lambda x: isinstance(x, jax.Array))
        leaves_of_aux, self._structure_of_aux = jax.tree.flatten(arrays)
        return [value, *leaves_of_aux]

    @cached_property
    def uses(self) -> list[list[Use]]:
        """How the loss uses each leaf of theta."""
        return [[] for _ in self._leaves] if self.jaxpr is None else find_uses(self.jaxpr)

    @property
    def splits(self) -> list[Split | None]:
        """For each leaf of theta, how to part its axes for factors, or None."""
        return [choose_split(uses) for uses in self.uses]

    def __call__(
        self,
        tangents: Sequence[Array | Factored],
        *,
        num_tangents: int = 1,
        enter_custom_vjp: bool = True,
        observer: Observer | None = None,
    ) -> tuple[Array, Array, PyTree]:
        """(loss, the K derivatives ∇loss·v_k, aux) for a tangent (K, ...) of each leaf."""
        pushed: Sequence[Tangent]
        if self.jaxpr is None:
            arrays = [dense(v) for v in tangents]
            outputs, pushed = jvp(
                lambda xs: self._flat(*xs),
                self._leaves,
                arrays,
                num_tangents,
                # Mapped over the tangents, what is written to a reference would be mapped too.
                one_by_one=num_tangents > 1 and self._uses_references,
            )
        else:
            context = Context(RULES, num_tangents, enter_custom_vjp, observer)
            named = [
                Factored(v.left, v.right, v.shape, (name,)) if isinstance(v, Factored) else v
                for v, name in zip(tangents, self.names, strict=True)
            ]
            outputs, pushed = propagate(context, self.jaxpr, self._leaves, named)
        value, *leaves_of_aux = map(jnp.asarray, outputs)
        derivative = pushed[0]
        if derivative is None:  # the loss does not depend on the parameters
            derivative = jnp.zeros(num_tangents, value.dtype)
        arrays_of_aux = jax.tree.unflatten(self._structure_of_aux, leaves_of_aux)
        return value, dense(derivative), combine(arrays_of_aux, self._rest_of_aux)
