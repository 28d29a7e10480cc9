"""The pushforward of a loss: traced once, then evaluated with tangents in any form."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from fwdgrad.propagation.interpreter import CannotBeStagedError, Context, jvp, propagate
from fwdgrad.propagation.matrix_axes import Use, choose_split, find_uses
from fwdgrad.propagation.record import current_record
from fwdgrad.propagation.rules.registry import RULES
from fwdgrad.propagation.tracing import Trace
from fwdgrad.tangents.factored import Split
from fwdgrad.tangents.forms import Tangent, dense, with_origin
from fwdgrad.util.trees import Array, PyTree


class Pushforward:
    """A loss at given parameters, ready to be evaluated along tangents.

    A loss that cannot be traced, because its Python code asks for the value of a parameter, or that
    works with mutable arrays, or of which a part has a derivative only while it runs, is pushed
    forward by `jax.jvp` as a whole, with its tangents written out.

    Args:
      traced: the loss, traced at its parameters.
      leaves: the parameters, theta, a list of arrays.
      names: of the arrays, as `explain` calls them.

    Attributes:
      names: of the leaves.
      program: of the loss, or None if it cannot be traced or works with mutable arrays.
      why_whole: why the loss is pushed forward as a whole, '' if it is not. Where a part is not
        known to need that before it is evaluated, it is '' until then.
    """

    def __init__(self, traced: Trace, leaves: Sequence[Array], names: Sequence[str]):
        self.names, self._leaves = list(names), list(leaves)
        self._traced, self.program, self.why_whole = traced, traced.program, traced.why_none

    @cached_property
    def uses(self) -> list[list[Use]]:
        """How the loss uses each leaf of theta."""
        return [[] for _ in self._leaves] if self.program is None else find_uses(self.program)

    @property
    def splits(self) -> list[Split | None]:
        """For each leaf of theta, how to part its axes for factors, or None."""
        return [choose_split(uses) for uses in self.uses]

    def __call__(
        self, tangents: Sequence[Tangent], *, num_tangents: int = 1
    ) -> tuple[Array, Array, PyTree]:
        """(loss, the K derivatives ∇loss·v_k, aux) for a tangent (K, ...) of each leaf, or None."""
        pushed: Sequence[Tangent]
        record = current_record()
        if record is not None:
            for name, v in zip(self.names, tangents, strict=True):
                if v is not None:
                    record.enter(name, v)
        if self.program is None:
            outputs, pushed = self._as_a_whole(tangents, num_tangents)
        else:
            context = Context(RULES)
            named = [with_origin(v, (name,)) for v, name in zip(tangents, self.names, strict=True)]
            try:
                outputs, pushed = propagate(context, self.program, self._leaves, named)
            except CannotBeStagedError as error:
                self.why_whole = str(error).partition(" Pass what")[0].rstrip(".")
                outputs, pushed = self._as_a_whole(tangents, num_tangents)
        value, *leaves_of_aux = map(jnp.asarray, outputs)
        derivative = pushed[0]
        if derivative is None:  # the loss does not depend on the parameters
            derivative = jnp.zeros(num_tangents, value.dtype)
        return value, dense(derivative), self._traced.flat.restore_aux(leaves_of_aux)

    def _as_a_whole(
        self, tangents: Sequence[Tangent], num_tangents: int
    ) -> tuple[list[Any], list[Tangent]]:
        if (record := current_record()) is not None:
            record.why_whole = self.why_whole
        arrays = [
            jnp.zeros((num_tangents, *x.shape), x.dtype) if v is None else dense(v)
            for v, x in zip(tangents, self._leaves, strict=True)
        ]
        return jvp(
            self._traced.flat,
            self._leaves,
            arrays,
            num_tangents,
            # Mapped over the tangents, what is written to a reference would be mapped too.
            one_by_one=num_tangents > 1 and self._traced.uses_references,
        )
