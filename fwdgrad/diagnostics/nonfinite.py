"""Search for the equation at which a tangent becomes NaN or infinite while its value is finite.

Forward mode may give NaN where reverse mode does not, and conversely: each mode multiplies other
factors of the chain rule with zero. So the search pushes one tangent forward, equation by equation,
with values: through calls, branches and the iterations of loops.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.interpreter import Context, propagate, propagate_equations
from fwdgrad.propagation.record import described
from fwdgrad.tangents.forms import Tangent, dense
from fwdgrad.util.jax_internals import Program, called_jaxpr, read_program
from fwdgrad.util.layouts import cond_branches, is_platform_dependent, scan_parts, while_parts
from fwdgrad.util.source_info import context_of

MAX_ITERATIONS = 10_000  # of a loop; the search evaluates them one by one


class NonFinite(NamedTuple):
    """Value and directional derivative of a loss, and the equations that make them non-finite.

    Attributes:
      value: the loss.
      derivative: its directional derivative along a tangent of random signs.
      places: the equations at which the value becomes NaN, or a tangent that reaches the derivative
        becomes NaN or infinite.
    """

    value: float
    derivative: float
    places: tuple[str, ...]

    def __str__(self) -> str:
        summary = f"the loss is {self.value:.6g}, its derivative along random signs "
        summary += f"{self.derivative:.6g}"
        if not self.places:
            return f"{summary}; no tangent that reaches it is NaN or infinite"
        return "\n  ".join([f"{summary}, because", *self.places])


def find_nonfinite(program: Program, leaves: Sequence[Any]) -> NonFinite:
    """Search a program for the equations at which a value or a tangent becomes non-finite.

    Args:
      program: from the parameters to a loss, or to losses that are averaged, as its
        first output.
      leaves: the values of the parameters.
    """
    random = np.random.default_rng(0)
    tangents = [jnp.asarray(random.choice([-1.0, 1.0], x.shape), x.dtype)[None] for x in leaves]
    outputs = _Search().through(program, leaves, tangents)
    value, tangent, places = outputs[0]
    derivative = 0.0 if tangent is None else float(np.mean(dense(tangent)))
    return NonFinite(float(np.mean(value)), derivative, places)


# (value, tangent (1, *shape) or None, the places that made either of them non-finite)
_Dual = tuple[Any, Any, tuple[str, ...]]


class _Search:
    """The search through nested jaxprs: of calls, branches and loops."""

    def through(
        self, program: Program, primals: Sequence[Any], tangents: Sequence[Tangent]
    ) -> list[_Dual]:
        """Push tangents through a program; search inside of equations with bad outputs."""
        values = program.environment(primals)
        duals: dict[Any, Tangent] = dict(zip(program.invars, tangents, strict=True))
        causes: dict[Any, tuple[str, ...]] = {}
        # An input that is bad already has its cause outside of this jaxpr.
        causes.update((v, ()) for v in program.invars if _is_bad(values[v], duals[v]))
        for equation in program.eqns:
            read = equation.reads
            known, moving = {v: values[v] for v in read}, {v: duals.get(v) for v in read}
            everything = {*read, *equation.outvars}
            propagate_equations(Context(record=None), [equation], known, moving, everything)
            bad = [v for v in equation.outvars if _is_bad(known[v], moving.get(v))]
            if bad:
                inherited = _joined(causes[v] for v in read if v in causes)
                if not any(v in causes for v in read):
                    operands = [_read(x, values, duals) for x in equation.invars]
                    with context_of(equation):
                        inherited = self._inside(equation, operands) or (
                            self._described(equation, operands, known, moving, bad[0]),
                        )
                causes.update((v, inherited) for v in bad)
            values.update((v, known[v]) for v in equation.outvars)
            duals.update((v, moving.get(v)) for v in equation.outvars)
        return [
            (*_read(v, values, duals), () if _is_literal(v) else causes.get(v, ()))
            for v in program.outvars
        ]

    def _inside(self, equation: Any, operands: Sequence[Any]) -> tuple[str, ...]:
        """Return the places inside of a call, a branch or a loop; none for any other equation."""
        primals, tangents = [x for x, _ in operands], [t for _, t in operands]
        if (body := called_jaxpr(equation)) is not None:
            return _places(self.through(read_program(body, equation), primals, tangents))
        if equation.primitive is primitives.cond_p and not is_platform_dependent(equation):
            branches = cond_branches(equation)
            taken = branches[int(np.clip(primals[0], 0, len(branches) - 1))]
            return _places(self.through(read_program(taken, equation), primals[1:], tangents[1:]))
        if equation.primitive is primitives.scan_p:
            return self._inside_scan(equation, primals, tangents)
        if equation.primitive is primitives.while_p:
            return self._inside_while(equation, primals, tangents)
        return ()

    def _inside_scan(
        self, equation: Any, primals: list[Any], tangents: list[Any]
    ) -> tuple[str, ...]:
        """Return the places in the first iteration of a scan with a bad output."""
        scan = scan_parts(equation)
        n, m = scan.num_consts, scan.num_consts + scan.num_carry
        body = _compiled(scan.body)
        carry, carry_tangents = primals[n:m], tangents[n:m]
        for i in range(min(scan.length, MAX_ITERATIONS)):
            at = scan.length - 1 - i if scan.reverse else i
            own = [*primals[:n], *carry, *(x[at] for x in primals[m:])]
            own_tangents = [
                *tangents[:n], *carry_tangents,
                *(None if t is None else dense(t)[:, at] for t in tangents[m:]),
            ]  # fmt: skip
            outputs, pushed = body(own, own_tangents)
            if any(map(_is_bad, outputs, pushed)):
                return self._inside_iteration(equation, scan.body, own, own_tangents, i)
            carry, carry_tangents = outputs[: m - n], pushed[: m - n]
        return ()

    def _inside_while(
        self, equation: Any, primals: list[Any], tangents: list[Any]
    ) -> tuple[str, ...]:
        """Return the places in the first iteration of a while loop with a bad output."""
        loop = while_parts(equation)
        if loop.condition.out_avals[0].shape:  # under vmap each example has its own last iteration
            return ()
        n, m = loop.num_condition_consts, loop.num_body_consts
        body, condition = _compiled(loop.body), jax.jit(jex_core.jaxpr_as_fun(loop.condition))
        carry, carry_tangents = primals[n + m :], tangents[n + m :]
        for i in range(MAX_ITERATIONS):
            if not condition(*primals[:n], *carry)[0]:
                break
            own = [*primals[n : n + m], *carry]
            own_tangents = [*tangents[n : n + m], *carry_tangents]
            carry, carry_tangents = body(own, own_tangents)
            if any(map(_is_bad, carry, carry_tangents)):
                return self._inside_iteration(equation, loop.body, own, own_tangents, i)
        return ()

    def _inside_iteration(
        self, equation: Any, body: Any, primals: list[Any], tangents: list[Any], i: int
    ) -> tuple[str, ...]:
        """Return the places inside of the i-th iteration of a loop."""
        found = _places(self.through(read_program(body, equation), primals, tangents))
        return tuple(f"{place}, in iteration {i} of {described(equation)}" for place in found)

    def _described(
        self, equation: Any, operands: Sequence[Any], values: Any, duals: Any, v: Any
    ) -> str:
        """Return the place of an equation, its first bad entry, and its operands there."""
        value, tangent = np.asarray(values[v]), duals.get(v)
        if np.isnan(value).any():
            entry, kind = np.argwhere(np.isnan(value))[0], "the value becomes nan"
            count = int(np.isnan(value).sum())
        else:
            rows = np.asarray(dense(tangent)[0])
            bad = ~np.isfinite(rows)
            # Prefer an entry with a finite value: a later mask may remove a non-finite value.
            wanted = bad & np.isfinite(value) if (bad & np.isfinite(value)).any() else bad
            entry, count = np.argwhere(wanted)[0], int(wanted.sum())
            kind = f"the tangent becomes {rows[tuple(entry)]} where the value is "
            kind += f"{value[tuple(entry)]:.6g}"
        place = f"{described(equation)}: {kind}"
        if value.size > 1:
            place += f", at {count} of {value.size} entries, first {tuple(map(int, entry))}"
        same = [x for x, _ in operands if jnp.shape(x) in (value.shape, ())]
        if len(same) == len(operands):
            at = [np.asarray(x)[tuple(entry)] if np.ndim(x) else np.asarray(x) for x in same]
            place += f" (of {', '.join(f'{x:.6g}' for x in at)})"
        return place


def _compiled(jaxpr: Any) -> Any:
    """Return the compiled pushforward of a ClosedJaxpr: (primals, tangents) -> both, of outputs."""
    return jax.jit(lambda primals, tangents: _pushed(jaxpr, primals, tangents))


def _pushed(jaxpr: Any, primals: list[Any], tangents: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return the outputs of a ClosedJaxpr and their dense tangents."""
    outputs, pushed = propagate(Context(record=None), read_program(jaxpr), primals, tangents)
    return outputs, [None if t is None else dense(t) for t in pushed]


def _read(atom: Any, values: Any, duals: Any) -> tuple[Any, Any]:
    return (atom.val, None) if _is_literal(atom) else (values[atom], duals.get(atom))


def _is_literal(atom: Any) -> bool:
    return isinstance(atom, jex_core.Literal)


def _is_bad(value: Any, tangent: Tangent) -> bool:
    """Return True if a value is NaN or its tangent is not finite; a mask of −∞ is not bad."""
    dtype = jnp.result_type(value) if not isinstance(value, jax.Array) else value.dtype
    if jnp.issubdtype(dtype, jnp.inexact) and bool(jnp.isnan(value).any()):
        return True
    return tangent is not None and not bool(jnp.isfinite(dense(tangent)).all())


def _joined(of_each: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Return all places in order, each once."""
    return tuple(dict.fromkeys(place for places in of_each for place in places))


def _places(duals: Iterable[_Dual]) -> tuple[str, ...]:
    """Return the places of all outputs of a jaxpr."""
    return _joined(places for _, _, places in duals)
