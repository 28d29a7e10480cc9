"""Structured dual propagation: a function together with its tangents, in their cheapest form.

The interpreter walks a jaxpr and carries, next to each primal value, its K tangents as `None`,
an array, or a `StructuredTangent` (`fwdgrad.tangents.forms`). For an equation y = f(x) it evaluates

    y = f(x)        ẏ = (∂f/∂x) ẋ

 1. by `f` alone, where every ẋ is zero;
 2. by a rule (`fwdgrad.propagation.rules`), where the structure of ẋ makes ẏ cheaper, or where f is
    control flow or a call that is entered;
 3. else by `jax.jvp` of the one equation, with ẋ written out.

It is right where JAX's own rules are, because 3 is, and fast where it matters. The primal is
evaluated once, whatever K. Its oracle is `jax.jvp` of the whole function with the tangents written
out.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.custom_functions import check_staged_rule, raise_for_custom_vjp
from fwdgrad.propagation.jaxprs import derivative_of_kernel, last_uses
from fwdgrad.propagation.record import Record, current_record, described, reason_of_loss
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import Tangent, count_tangents, is_structured, padded
from fwdgrad.util.jax_internals import Equation, Program, bind
from fwdgrad.util.programs import evaluate_equation, map_over, run_compiled
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.source_info import context_of, place
from fwdgrad.util.trees import Array

# rule(context, equation, primals, tangents) -> (outputs, their tangents), or NotImplemented.
# It is called only where some tangent is not zero.
Rule = Callable[["Context", Any, list[Any], list[Tangent]], Any]

# The rules of each primitive, by the name of one of JAX and by the object of any other.
# `fwdgrad.propagation.rules.registry` fills the table.
RULES: dict[Any, Any] = {}


def rules_of(equation: Any, rules: Mapping[Any, Any] = RULES) -> Any:
    """Return the rules of an equation's primitive, None if there are none."""
    return rules.get(equation.name or equation.primitive)


@dataclass(frozen=True)
class Context:
    """Settings shared by all rules in a propagation.

    Attributes:
      rules: a copy of `RULES`, so that an evaluation keeps the rules with which it began.
      record: of the equations that read a structured tangent of a parameter, if one is kept.
      explicit_axes: True on a mesh with explicit axes, where rules that reshape may fail.
      values_known: True if the primal values are there before propagation, and are left as they
        are. A loss without loops and calls only: an inner program would not know them.
    """

    rules: Mapping[Any, Any] = field(default_factory=RULES.copy)
    record: Record | None = field(default_factory=current_record)
    explicit_axes: bool = field(default_factory=has_explicit_axes)
    values_known: bool = False

    def observe(self, equation: Any, tangent: StructuredTangent) -> None:
        """Record that an equation used or kept the structure, if the tangent is a parameter's."""
        if self.record is not None and tangent.origin:
            self.record.use(tangent.origin, described(equation))

    def observe_loss(self, equation: Any, tangent: StructuredTangent, reason: str) -> None:
        """Record that an equation loses the structure, if the tangent is a parameter's."""
        if self.record is not None and tangent.origin:
            self.record.lose(tangent.origin, described(equation), reason)

    def materialize(self, equation: Any, tangent: Tangent, reason: str) -> Array | None:
        """Return the dense tangent, and record that its structure is lost."""
        if isinstance(tangent, StructuredTangent):
            self.observe_loss(equation, tangent, reason)
            return tangent.dense()
        return tangent

    def materialize_operand(
        self, equation: Any, tangents: Sequence[Tangent], lost: Tangent
    ) -> Array | None:
        """Return the dense tangent of an operand, and record why no rule keeps its structure."""
        reason = ""
        if self.record is not None and isinstance(lost, StructuredTangent):
            rules = rules_of(equation, self.rules)
            has_rule = rules is not None and type(lost) in rules.by_form
            reason = reason_of_loss(equation, tangents, lost, has_rule=has_rule)
        return self.materialize(equation, lost, reason)


def propagate(
    context: Context, program: Program, primals: Sequence[Any], tangents: Sequence[Tangent]
) -> tuple[list[Any], list[Tangent]]:
    """Evaluate a program at `primals` with `tangents`; return its outputs and their tangents."""
    values = program.environment(primals)
    duals = dict(zip(program.invars, tangents, strict=True))
    propagate_equations(context, program.eqns, values, duals, program.outvars)
    pairs = [_read(v, values, duals) for v in program.outvars]
    return [x for x, _ in pairs], [t for _, t in pairs]


def propagate_equations(
    context: Context,
    equations: Sequence[Equation],
    values: dict[Any, Any],
    duals: dict[Any, Tangent],
    kept: Container[Any] | None,
) -> None:
    """Evaluate equations, adding the outputs to `values` and their tangents to `duals`.

    A variable that is not in `kept` is dropped from both after its last use. If `kept` is None, all
    are kept. If the context says that the values are known, `values` is left as it is. (An equation
    that tangents go through is evaluated, but nothing reads its outputs, and XLA removes them.)
    """
    for equation, used in zip(equations, last_uses(equations, kept), strict=True):
        pairs = [_read(v, values, duals) for v in equation.invars]
        primals, tangents = [x for x, _ in pairs], [t for _, t in pairs]
        if context.values_known and all(t is None for t in tangents):
            continue
        with context_of(equation):
            tangents = _aligned(context, equation, tangents)
            outputs, pushed = _evaluate(context, equation, primals, tangents)
            if not context.values_known:
                values.update(zip(equation.outvars, outputs, strict=True))
        duals.update(zip(equation.outvars, pushed, strict=True))
        del pairs, primals, tangents, outputs, pushed
        for v in used:
            values.pop(v, None)
            duals.pop(v, None)


def _read(
    atom: Any, values: Mapping[Any, Any], duals: Mapping[Any, Tangent]
) -> tuple[Any, Tangent]:
    if isinstance(atom, jex_core.Literal):
        return atom.val, None
    return values[atom], duals.get(atom)


def _aligned(context: Context, equation: Any, tangents: list[Tangent]) -> list[Tangent]:
    """Return the tangents of an equation's operands, as many of each: zeros come after the fewer.

    The tangent of an array without entries is materialised: that costs nothing, and no rule has to
    tell an axis of size zero from one on which a factor does not depend.
    """
    tangents = [
        t.dense() if isinstance(t, StructuredTangent) and 0 in t.shape else t for t in tangents
    ]
    if sum(t is not None for t in tangents) <= 1:
        return tangents
    numbers = {count_tangents(t) for t in tangents if t is not None}
    if len(numbers) == 1:
        return tangents
    reason = "its operands have tangents of different layers"
    arrays = [context.materialize(equation, t, reason) for t in tangents]
    return [None if t is None else padded(t, max(numbers)) for t in arrays]


def _evaluate(
    context: Context, equation: Equation, primals: list[Any], tangents: list[Tangent]
) -> tuple[list[Any], Sequence[Tangent]]:
    if all(t is None for t in tangents):
        return evaluate_equation(equation, primals), [None] * len(equation.outvars)
    rules, structured = rules_of(equation, context.rules), any(map(is_structured, tangents))
    if rules is not None and (structured or rules.takes_dense):
        result = rules(context, equation, primals, tangents)
        if result is not NotImplemented:
            _check_shapes(equation, tangents, result[1])
            return result
    if not equation.is_inexact:  # a comparison: no tangent goes on from here
        return evaluate_equation(equation, primals), [None] * len(equation.outvars)
    if structured:
        tangents = [context.materialize_operand(equation, tangents, t) for t in tangents]
    return _differentiated(equation, primals, tangents)  # type: ignore[arg-type]


def _differentiated(
    equation: Equation, primals: list[Any], tangents: list[Array | None]
) -> tuple[list[Any], Sequence[Tangent]]:
    """Evaluate one equation by `jax.jvp`; raise an error that names it if that cannot be."""

    def fun(values: list[Any]) -> list[Any]:
        return bind(equation, values)

    if equation.custom_vjp is not None:
        raise_for_custom_vjp(equation.custom_vjp)
    if equation.primitive is primitives.custom_jvp_call_p:
        check_staged_rule(equation)
    number = next(len(t) for t in tangents if t is not None)
    if equation.has_loops:
        return run_compiled(lambda xs, ts: jvp(fun, xs, ts, number), primals, tangents)
    if not equation.is_kernel:
        return jvp(fun, primals, tangents, number)
    with derivative_of_kernel(equation):
        return jvp(fun, primals, _with_zeros(primals, tangents, number), number)


def _with_zeros(
    primals: Sequence[Any], tangents: Sequence[Array | None], number: int
) -> list[Array | None]:
    """Return tangents that are arrays for all operands that can have one.

    JAX's rule for kernels fails where an operand has no tangent and another has one.
    """
    return [
        jnp.zeros((number, *jnp.shape(x)), jnp.result_type(x))
        if t is None and jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        else t
        for x, t in zip(primals, tangents, strict=True)
    ]


def _check_shapes(equation: Any, tangents: Sequence[Tangent], pushed: Sequence[Tangent]) -> None:
    """Raise unless the tangents that a rule of ours returned have the shapes of the outputs."""
    number = next(count_tangents(t) for t in tangents if t is not None)
    for v, t in zip(equation.outvars, pushed, strict=True):
        if t is None:
            continue
        found = (count_tangents(t), *(t.shape if is_structured(t) else t.shape[1:]))
        if found != (expected := (number, *v.aval.shape)):
            raise AssertionError(
                f"fwdgrad: the tangent of {equation.primitive.name} at {place(equation)} has the "
                f"shape {found} instead of {expected}; please report this."
            )


def jvp(
    fun: Callable[[list[Any]], list[Any]],
    primals: Sequence[Any],
    tangents: Sequence[Array | None],
    num_tangents: int,
    *,
    one_by_one: bool = False,
) -> tuple[list[Any], list[Tangent]]:
    """Evaluate `jax.jvp` for K dense tangents (K, ...), where `None` is zero.

    They are mapped over; or pushed forward one by one, if that is asked for, or if `fun` cannot be
    mapped (some kernels, ragged products, functions with a mapping rule of their own). If it fails
    one by one as well, the first error is raised.
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
        outputs, pushed = push(*(jax.lax.squeeze(t, (0,)) for t in active.values()))
        pushed = [jax.lax.expand_dims(t, (0,)) for t in pushed]
    else:
        each = list(active.values())

        def in_turn() -> tuple[list[Any], list[Array]]:
            outputs = fun(list(primals))
            return outputs, map_over(lambda own: push(*own)[1], each)

        if one_by_one:
            outputs, pushed = in_turn()
        else:
            try:
                outputs, pushed = jax.vmap(push, out_axes=(None, 0))(*each)
            except Exception as error:  # of any kind: a rule for mapping may raise what it likes
                try:
                    outputs, pushed = in_turn()
                except Exception:
                    raise error from None
    remaining = iter(pushed)
    return outputs, [next(remaining) if kept else None for kept in inexact]
