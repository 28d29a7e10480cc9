"""A loss, traced once (`trace`), and pushed forward along tangents in any form (`Pushforward`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.propagation.custom_functions import CannotBeStagedError, entered
from fwdgrad.propagation.interpreter import Context, jvp, propagate
from fwdgrad.propagation.matrix_axes import Use, choose_split, find_uses
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.factored import Split
from fwdgrad.tangents.forms import Tangent, dense, with_origin
from fwdgrad.util.jax_internals import (
    Program,
    read_program,
    uses_references,
)
from fwdgrad.util.trees import Array, FlatAux, PyTree


@dataclass(frozen=True)
class Trace:
    """A loss, traced at its parameters.

    Attributes:
      flat: the loss as a function of the parameters, a list, and what else it was traced at; it
        returns the loss and the arrays of aux.
      program: its jaxpr, whose first inputs are the parameters and first output the loss. None if
        the loss cannot be traced, or works with mutable arrays.
      why_none: the reason why there is no program, or ''.
      uses_references: True if the loss works with mutable arrays.
      error: the error of a loss that cannot be traced.
    """

    flat: FlatAux
    program: Program | None
    why_none: str = ""
    uses_references: bool = False
    error: Exception | None = None

    def entered(self, num_leaves: int) -> "Trace":
        """Return the trace with the bodies of `custom_vjp` functions in the place of their calls.

        Only calls that tangents of the parameters reach are replaced. A call that stays is an error
        where a tangent is pushed through it.
        """
        if self.program is None or not any(e.custom_vjp for e in self.program.eqns):
            return self
        return replace(self, program=entered(self.program, num_leaves))

    def required(self, needed_by: str) -> Program:
        """Return the program; raise TypeError if there is none, with the option that needs it."""
        remedy = "Write it with jax.numpy.where or jax.lax.cond, or use space=Weights()"
        if self.error is not None:
            raise TypeError(
                f"fun cannot be traced, which {needed_by} needs: its Python code asks for the "
                f"value of an array (see the error above). {remedy}."
            ) from self.error
        if self.uses_references:
            raise TypeError(
                f"fun works with mutable arrays (jax.new_ref), through which {needed_by} does not "
                f"follow noise. {remedy}."
            )
        assert self.program is not None
        return self.program


def trace(fun: Callable[..., Any], leaves: Sequence[Array], *others: Any) -> Trace:
    """Trace a loss.

    Args:
      fun: `fun(leaves, *others)` returns (loss, aux).
      leaves: the parameters.
      others: pytrees of arrays.
    """
    flat = FlatAux(fun)
    try:
        jaxpr = jax.make_jaxpr(lambda *args: flat(*args))(leaves, *others)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        return Trace(flat, None, "its Python code asks for the value of a parameter", error=error)
    if any(map(uses_references, jaxpr.jaxpr.eqns)):
        return Trace(flat, None, "it works with mutable arrays", uses_references=True)
    return Trace(flat, read_program(jaxpr))


class Pushforward:
    """A loss at given parameters, ready to be evaluated along tangents.

    Three kinds of losses are pushed forward by `jax.jvp` as a whole, with dense tangents: one that
    cannot be traced, because its Python code asks for the value of a parameter; one that works with
    mutable arrays; and one with a part that has a derivative only while it runs.

    Args:
      traced: the loss, traced at its parameters.
      leaves: the parameters, theta, a list of arrays.
      names: of the arrays, as `explain` calls them.

    Attributes:
      names: of the leaves.
      program: of the loss, or None if it cannot be traced or works with mutable arrays.
      why_whole: the reason why the loss is pushed forward as a whole, or ''. A part may show its
        need only when it is evaluated; until then it is ''.
    """

    def __init__(self, traced: Trace, leaves: Sequence[Array], names: Sequence[str]):
        self.names, self._leaves = list(names), list(leaves)
        self._traced, self.program, self.why_whole = traced, traced.program, traced.why_none

    @cached_property
    def uses(self) -> list[list[Use]]:
        """The uses of each leaf of theta in the loss."""
        return [[] for _ in self._leaves] if self.program is None else find_uses(self.program)

    @property
    def splits(self) -> list[Split | None]:
        """The split of each leaf of theta into rows and columns, or None."""
        return [choose_split(uses) for uses in self.uses]

    def __call__(
        self, tangents: Sequence[Tangent], *, num_tangents: int = 1
    ) -> tuple[Array, Array, PyTree]:
        """Return (loss, the K derivatives ∇loss·v_k, aux).

        Args:
          tangents: for each leaf K tangents, or None for zero.
          num_tangents: K.
        """
        return self.with_tangents_of_aux(tangents, num_tangents=num_tangents)[:3]

    def with_tangents_of_aux(
        self, tangents: Sequence[Tangent], *, num_tangents: int = 1
    ) -> tuple[Array, Array, PyTree, list[Tangent]]:
        """Return the outputs of the call, and K tangents of each array of aux, or None for zero."""
        pushed: Sequence[Tangent]
        record = current_record()
        if record is not None:
            for name, v in zip(self.names, tangents, strict=True):
                if v is not None:
                    record.enter(name, v)
        if self.program is None:
            outputs, pushed = self._as_a_whole(tangents, num_tangents)
        else:
            context = Context()
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
        aux = self._traced.flat.restore_aux(leaves_of_aux)
        return value, dense(derivative), aux, list(pushed[1:])

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
