"""Structured dual propagation: a function together with its tangents, in their cheapest form.

The interpreter walks a jaxpr and carries, next to each primal value, its K tangents as `None`,
an array or `Factored` (`fwdgrad.core.factored`). For an equation y = f(x) it evaluates

    y = f(x)        ẏ = (∂f/∂x) ẋ

 1. by `f` alone, where every ẋ is zero;
 2. by a rule, where the structure of ẋ makes ẏ cheaper (`contractions`, `layouts`) or where f
    is control flow or a call that is entered (`control_flow`);
 3. else by `jax.jvp` of the one equation, with ẋ written out.

So it is right where JAX's own rules are, because 3 is, and fast where it matters. The primal is
evaluated once, whatever K. Its oracle is `jax.jvp` of the whole function with the tangents written
out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from fwdgrad.core import checks
from fwdgrad.core.factored import Factored, Tangent, dense
from fwdgrad.core.jaxprs import bind, context_of, find_custom_vjp, place, without_custom_vjp
from fwdgrad.core.trees import Array

# rule(context, equation, primals, tangents) -> (outputs, their tangents), or NotImplemented.
# It is called only where some tangent is not zero.
Rule = Callable[["Context", Any, list[Any], list[Tangent]], Any]

Observer = Callable[[Any, Factored, bool], None]


@dataclass(frozen=True)
class Context:
    """What holds for a whole propagation.

    Attributes:
      rules: by the name of a primitive, its rule.
      num_tangents: K.
      enter_custom_vjp: whether to differentiate what a `custom_vjp` function computes; if not,
        a tangent that reaches one is an error.
      observer: called as observer(equation, tangent, kept) for each equation that reads a factored
        tangent of a parameter, with whether it kept or used the structure.
    """

    rules: Mapping[str, Rule]
    num_tangents: int = 1
    enter_custom_vjp: bool = True
    observer: Observer | None = None

    def observe(self, equation: Any, tangent: Factored, kept: bool) -> None:
        """Tells the observer, if the tangent is still a parameter's own."""
        if self.observer is not None and tangent.origin:
            self.observer(equation, tangent, kept)

    def written_out(self, equation: Any, tangent: Tangent) -> Array | None:
        """The tangent as an array; that its structure is lost here is observed."""
        if isinstance(tangent, Factored):
            self.observe(equation, tangent, False)
            return dense(tangent)
        return tangent


def propagate(
    context: Context, jaxpr: Any, primals: Sequence[Any], tangents: Sequence[Tangent]
) -> tuple[list[Any], list[Tangent]]:
    """Evaluates a ClosedJaxpr at `primals` with their `tangents`: its outputs, and theirs."""
    values = dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    values.update(zip(jaxpr.jaxpr.invars, primals, strict=True))
    duals = dict(zip(jaxpr.jaxpr.invars, tangents, strict=True))
    last_read = {
        v: i
        for i, e in enumerate(jaxpr.jaxpr.eqns)
        for v in e.invars
        if not isinstance(v, jex_core.Literal)
    }
    last_read.update((v, -1) for v in jaxpr.jaxpr.outvars if not isinstance(v, jex_core.Literal))

    def read(atom: Any) -> tuple[Any, Tangent]:
        if isinstance(atom, jex_core.Literal):
            return atom.val, None
        return values[atom], duals.get(atom)

    for i, equation in enumerate(jaxpr.jaxpr.eqns):
        pairs = [read(v) for v in equation.invars]
        with context_of(equation):
            outputs, their_tangents = _evaluate(
                context, equation, [x for x, _ in pairs], [t for _, t in pairs]
            )
        _check_shapes(context, equation, their_tangents)
        values.update(zip(equation.outvars, outputs, strict=True))
        duals.update(zip(equation.outvars, their_tangents, strict=True))
        for v in equation.invars:  # nothing is kept alive longer than it is read
            if not isinstance(v, jex_core.Literal) and last_read[v] == i:
                values.pop(v, None)
                duals.pop(v, None)
    pairs = [read(v) for v in jaxpr.jaxpr.outvars]
    return [x for x, _ in pairs], [t for _, t in pairs]


def _evaluate(
    context: Context, equation: Any, primals: list[Any], tangents: list[Tangent]
) -> tuple[list[Any], Sequence[Tangent]]:
    if all(t is None for t in tangents):
        return bind(equation, primals), [None] * len(equation.outvars)
    if rule := context.rules.get(equation.primitive.name):
        result = rule(context, equation, primals, tangents)
        if result is not NotImplemented:
            return result
    arrays = [context.written_out(equation, t) for t in tangents]
    if (inner := find_custom_vjp(equation)) is not None:
        if not context.enter_custom_vjp:
            checks.raise_for_custom_vjp(inner)
        equation = without_custom_vjp(equation)

    def fun(values: list[Any]) -> list[Any]:
        return bind(equation, values)

    try:
        return jvp(fun, primals, arrays, context.num_tangents)
    except (ValueError, NotImplementedError):  # it cannot be mapped: Pallas, ragged_dot
        return jvp(fun, primals, arrays, context.num_tangents, one_by_one=True)


def _check_shapes(context: Context, equation: Any, tangents: Sequence[Tangent]) -> None:
    """Raises unless the tangents of an equation's outputs fit them: a rule of ours is at fault."""
    for v, t in zip(equation.outvars, tangents, strict=True):
        lead = () if isinstance(t, Factored) else (context.num_tangents,)
        expected = (*lead, *v.aval.shape)
        if t is not None and t.shape != expected:
            raise AssertionError(
                f"fwdgrad: the tangent of {equation.primitive.name} at {place(equation)} has the "
                f"shape {t.shape} instead of {expected}; please report this."
            )


def jvp(
    fun: Callable[[list[Any]], list[Any]],
    primals: Sequence[Any],
    tangents: Sequence[Array | None],
    num_tangents: int,
    *,
    one_by_one: bool = False,
) -> tuple[list[Any], list[Tangent]]:
    """`jax.jvp` for K dense tangents (K, ...), where `None` is zero.

    They are mapped over, or pushed forward one by one.
    """
    active = {i: t for i, t in enumerate(tangents) if t is not None}

    def of_active(*values: Any) -> list[Any]:
        full = list(primals)
        for i, x in zip(active, values, strict=True):
            full[i] = x
        return fun(full)

    inexact: list[bool] = []  # outputs of other dtypes have no tangent

    def push(*their_tangents: Array) -> tuple[list[Any], list[Array]]:
        outputs, pushed = jax.jvp(of_active, tuple(primals[i] for i in active), their_tangents)
        inexact[:] = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in outputs]
        return outputs, [t for t, kept in zip(pushed, inexact, strict=True) if kept]

    if num_tangents == 1:  # not mapped: some primitives are slower with one more axis
        outputs, pushed = push(*(t[0] for t in active.values()))
        pushed = [t[None] for t in pushed]
    elif one_by_one:
        outputs = fun(list(primals))
        pushed = jax.lax.map(lambda their_tangents: push(*their_tangents)[1], [*active.values()])
    else:
        outputs, pushed = jax.vmap(push, out_axes=(None, 0))(*active.values())
    remaining = iter(pushed)
    return outputs, [next(remaining) if kept else None for kept in inexact]
