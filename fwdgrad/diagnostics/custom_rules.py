"""Comparison of `custom_vjp` rules with the forward-mode derivative of their functions.

Forward mode enters a `jax.custom_vjp` function: it differentiates the function and ignores the
reverse-mode rule. If the rule is not the derivative of the function (a straight-through estimator,
a clipped gradient, an implicit derivative of a loop that has not converged), the mean of the
estimate is not the gradient of `jax.grad`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.custom_functions import without_custom_vjp
from fwdgrad.propagation.jaxprs import carried
from fwdgrad.util.jax_internals import (
    Program,
    bind,
    called_jaxpr,
    custom_jvp_body,
    function_name,
    is_custom_vjp,
    is_inexact,
    read_program,
)
from fwdgrad.util.layouts import cond_branches, is_platform_dependent, scan_parts, while_parts
from fwdgrad.util.source_info import context_of, place

_DIRECTIONS = 4
_ROUNDING = {16: 5e-2, 32: 1e-3, 64: 1e-6}  # relative, by the bits of the dtype


class CustomRule(NamedTuple):
    """A `custom_vjp` function that a tangent reaches.

    Attributes:
      function: the name of the function, and the place of its definition.
      place: the place of its call.
      difference: ‖r − d‖ / max(‖r‖, ‖d‖), with r the derivatives by the rule and d the derivatives
        of the function, along random directions; None if unknown.
      reason: the reason for which the difference is unknown, or ''.
      differs: True if the difference is larger than rounding.
    """

    function: str
    place: str
    difference: float | None
    reason: str
    differs: bool

    def __str__(self) -> str:
        if self.difference is None:
            verdict = f"the difference of its rule is unknown: {self.reason}"
        elif self.differs:
            verdict = (
                "its rule DIFFERS from the derivative of the function, by "
                f"{100 * self.difference:.3g} % at these arguments: the mean of the estimate is "
                "not the gradient of jax.grad"
            )
        else:
            verdict = "its rule is the derivative of the function"
        return f"{self.function}, called at {self.place}: {verdict}"


def entered_custom_rules(program: Program, values: Sequence[Any] | None) -> tuple[CustomRule, ...]:
    """Return the custom_vjp functions that tangents of the inputs of a program reach.

    Args:
      program: the loss; its inputs are the parameters.
      values: the inputs at which rules are compared; None if inputs or constants are abstract.
    """
    if not any(equation.custom_vjp for equation in program.eqns):
        return ()
    walk = _Walk()
    walk.through(program, values, [is_inexact(v) for v in program.invars])
    return tuple(walk.found.values())


class _Walk:
    """An evaluation of a loss that collects the custom_vjp functions on its way.

    Without values it follows the equations alone.

    Attributes:
      found: the functions by name and place of the call; of several calls at one place, the call
        with the largest difference.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], CustomRule] = {}

    def through(
        self, program: Program, inputs: Sequence[Any] | None, active: Sequence[bool]
    ) -> tuple[list[Any] | None, list[bool]]:
        """Walk through a program; return its outputs (None without inputs) and their activity.

        A value is active if a tangent can reach it.
        """
        variables = program.invars
        active_variables = {v for v, is_active in zip(variables, active, strict=True) if is_active}
        values: dict[Any, Any] | None = None
        if inputs is not None:
            values = program.environment(inputs)

        def read(atoms: Sequence[Any]) -> list[Any] | None:
            if values is None:
                return None
            return [v.val if isinstance(v, jex_core.Literal) else values[v] for v in atoms]

        def are_active(atoms: Sequence[Any]) -> list[bool]:
            return [not isinstance(v, jex_core.Literal) and v in active_variables for v in atoms]

        for equation in program.eqns:
            with context_of(equation):
                operands, reached = read(equation.invars), are_active(equation.invars)
                outputs, pushed = self._equation(equation, operands, reached)
            if values is not None and outputs is not None:
                values.update(zip(equation.outvars, outputs, strict=True))
            both = zip(equation.outvars, pushed, strict=True)
            active_variables.update(v for v, is_active in both if is_active)
        return read(program.outvars), are_active(program.outvars)

    def _equation(
        self, equation: Any, operands: list[Any] | None, active: list[bool]
    ) -> tuple[list[Any] | None, list[bool]]:
        """Evaluate an equation; return its outputs (None without operands) and their activity."""
        reaches = any(active) and equation.primitive is not primitives.stop_gradient_p
        pushed = [reaches and is_inexact(v) for v in equation.outvars]
        inner = equation.custom_vjp if reaches else None
        # A custom_jvp function is not entered: forward mode uses its rule.
        if inner is not None and custom_jvp_body(equation) is None:
            if is_custom_vjp(equation):
                self._compare(equation, operands, active)
            body = called_jaxpr(equation)
            if body is not None:
                return self.through(read_program(body, equation), operands, active)
            pushed = self._control_flow(equation, inner, operands, active) or pushed
        return None if operands is None else bind(equation, operands), pushed

    def _control_flow(
        self, equation: Any, inner: Any, operands: list[Any] | None, active: list[bool]
    ) -> list[bool] | None:
        """Walk through the branches, or through the first iteration of a loop."""
        primitive = equation.primitive
        if primitive is primitives.cond_p and not is_platform_dependent(equation):
            index = None if operands is None else int(np.clip(operands[0], 0, None))
            for i, branch in enumerate(cond_branches(equation)):
                taken = operands is not None and i == index
                self.through(
                    read_program(branch, equation),
                    operands[1:] if taken and operands else None,
                    active[1:],
                )
        elif primitive is primitives.scan_p:
            scan = scan_parts(equation)
            n, m = scan.num_consts, scan.num_consts + scan.num_carry
            carried_active = carried(scan.body.jaxpr, active[:n], active[n:m], active[m:])
            first = None
            if operands is not None and scan.length:
                at = -1 if scan.reverse else 0
                first = [*operands[:m], *(x[at] for x in operands[m:])]
            carried_active = [*active[:n], *carried_active, *active[m:]]
            _, pushed = self.through(read_program(scan.body, equation), first, carried_active)
            return pushed
        elif primitive is primitives.while_p:
            loop = while_parts(equation)
            n, m = loop.num_condition_consts, loop.num_body_consts
            carried_active = carried(loop.body.jaxpr, active[n : n + m], active[n + m :], ())
            first = None if operands is None else operands[n:]
            carried_active = [*active[n : n + m], *carried_active]
            _, pushed = self.through(read_program(loop.body, equation), first, carried_active)
            return pushed
        else:
            self._add(inner, None, f"it is called inside of `{primitive.name}`")
        return None

    def _compare(self, equation: Any, operands: list[Any] | None, active: list[bool]) -> None:
        """Compare the rule of a custom_vjp call with the derivative of its function."""
        if operands is None:
            reason = "the comparison needs the values of its arguments, and they are abstract here"
            self._add(equation, None, reason)
            return
        try:
            difference = _difference(equation, operands, active)
        except Exception as error:  # of the user's rule, or of JAX in the function
            self._add(equation, None, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            return
        if not np.isfinite(difference):
            self._add(equation, None, "a derivative is not finite at these arguments")
        else:
            self._add(equation, difference, "", differs=difference > _rounding(equation))

    def _add(
        self, equation: Any, difference: float | None, reason: str, differs: bool = False
    ) -> None:
        """Add a call to `found`, unless a call at the same place differs more."""
        rule = CustomRule(function_name(equation), place(equation), difference, reason, differs)
        known = self.found.get(rule[:2])
        sizes = [-1.0 if x is None or x.difference is None else x.difference for x in (known, rule)]
        if known is None or sizes[1] > sizes[0]:
            self.found[rule[:2]] = rule


def _difference(equation: Any, operands: list[Any], active: list[bool]) -> float:
    """Return the relative difference of ⟨c, J v⟩ by the rule (Jᵀ c) and by `jax.jvp` (J v)."""
    positions = [i for i, is_active in enumerate(active) if is_active]
    outputs = [i for i, v in enumerate(equation.outvars) if is_inexact(v)]

    def function(equation: Any) -> Any:
        def of_active(*xs: Any) -> list[Any]:
            full = list(operands)
            for i, x in zip(positions, xs, strict=True):
                full[i] = x
            results = bind(equation, full)
            return [results[i] for i in outputs]

        return of_active

    random = np.random.default_rng(0)

    def directions(like: Sequence[Any]) -> list[Any]:
        return [jnp.asarray(random.normal(size=jnp.shape(x)), jnp.result_type(x)) for x in like]

    xs = [operands[i] for i in positions]
    values, pull_back = jax.vjp(function(equation), *xs)
    computed = function(without_custom_vjp(equation.source))
    by_rule, by_function = np.zeros(_DIRECTIONS), np.zeros(_DIRECTIONS)
    for k in range(_DIRECTIONS):
        v, c = directions(xs), directions(values)
        by_rule[k] = _inner(pull_back(c), v)
        by_function[k] = _inner(jax.jvp(computed, tuple(xs), tuple(v))[1], c)
    size = max(np.linalg.norm(by_rule), np.linalg.norm(by_function))
    return float(np.linalg.norm(by_rule - by_function) / size) if size else 0.0


def _inner(xs: Sequence[Any], ys: Sequence[Any]) -> float:
    """Return the inner product of two lists of arrays, in float64."""
    pairs = zip(xs, ys, strict=True)
    return float(
        sum(np.vdot(np.asarray(y, np.float64), np.asarray(x, np.float64)) for x, y in pairs)
    )


def _rounding(equation: Any) -> float:
    """Return the relative difference that rounding can make, by the fewest bits of a dtype."""
    floating = [v.aval.dtype for v in (*equation.invars, *equation.outvars) if is_inexact(v)]
    return _ROUNDING[min(max(16, min(jnp.finfo(dtype).bits for dtype in floating)), 64)]
