"""The table of facts about primitives, each column held against derivatives.

Every equation of the sweep is differentiated by each of its operands. What the Jacobians say of a
primitive has to stand in its row, or an exemption says why it does not.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.propagation.facts import FACTS, Linear, axes_of, fact_of
from fwdgrad.propagation.rules import control_flow, picks, structural
from fwdgrad.util.jax_internals import Equation, bind, called_jaxpr
from tests.propagation.primitives import CASES
from tests.propagation.primitives.case import PRIMITIVES
from tests.propagation.primitives.exemptions import (
    APART_WITHOUT_A_FACT,
    EXEMPT,
    LINEAR_WITHOUT_A_FACT,
    SELECTING_WITHOUT_A_FACT,
    WITHOUT_FACTS,
)
from tests.propagation.primitives.tangents import flat, operands_of

pytestmark = pytest.mark.thorough

_ONLY_ELEMENTWISE = {name for name, fact in FACTS.items() if fact == FACTS["sin"]}


class Example(NamedTuple):
    """An equation with its Jacobians and values; integer operands and outputs are left out.

    Attributes:
      equation: the equation.
      jacobians: for each (output, operand) an array (*output, *operand).
      values: the value of each operand.
      outputs: the value of each output.
      elsewhere: for each set of operands, the outputs at other values of these operands.
      others: the other values, of both signs.
    """

    equation: Any
    jacobians: Mapping[tuple[int, int], np.ndarray]
    values: Mapping[int, np.ndarray]
    outputs: Mapping[int, np.ndarray]
    elsewhere: Mapping[tuple[int, ...], Mapping[int, np.ndarray]]
    others: Mapping[int, np.ndarray]

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    def is_linear_in(self, operands: Sequence[int]) -> bool:
        """Return True if the Jacobian at one value predicts the outputs at the other value.

        Then the outputs are linear in these operands up to a constant.
        """
        moves = {i: self.others[i] - self.values[i] for i in operands}
        return all(
            np.allclose(
                self.outputs[o] + sum(
                    np.tensordot(self.jacobians[o, i], x, x.ndim) for i, x in moves.items()
                ),
                y, atol=1e-4, rtol=1e-4,
            )
            for o, y in self.elsewhere[tuple(operands)].items()
        )  # fmt: skip


def is_real(x: Any) -> bool:
    dtype = jax.dtypes.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 4 and np.prod(jnp.shape(x)) > 0


def found_of(equation, operands):
    """Return the fields of the `Example` of an equation after the first."""
    moving = {
        i: x
        for i, x in enumerate(operands)
        if is_real(x) and not isinstance(equation.invars[i], jax.extend.core.Literal)
    }

    def outputs_at(xs):
        ys = bind(equation, [xs.get(i, x) for i, x in enumerate(operands)])
        return {o: y for o, y in enumerate(ys) if is_real(y)}

    rng = np.random.default_rng(0)
    others = {i: jnp.asarray(rng.normal(size=jnp.shape(x)), x.dtype) for i, x in moving.items()}
    derivatives = jax.jacfwd(outputs_at)(moving)
    jacobians = {(o, i): j for o, each in derivatives.items() for i, j in each.items()}
    sets = {*((i,) for i in moving), tuple(moving)}
    elsewhere = {s: outputs_at({**moving, **{i: others[i] for i in s}}) for s in sets}
    return jacobians, moving, outputs_at(moving), elsewhere, others


def collect(jaxpr, consts, operands, found):
    """Evaluate a jaxpr, and add the findings of its equations by name, parameters and types."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, operands, strict=True))
    for equation in jaxpr.eqns:
        own = [
            v.val if isinstance(v, jax.extend.core.Literal) else values[v] for v in equation.invars
        ]
        own = [jnp.asarray(x) if is_real(x) else x for x in own]
        name = equation.primitive.name
        if (body := called_jaxpr(equation)) is not None:
            outputs = collect(body.jaxpr, body.consts, own, found)
        else:
            outputs = bind(equation, own)
            key = name, str(equation.params), str([v.aval for v in equation.invars])
            known = {*_ONLY_ELEMENTWISE, *control_flow.RULES, *WITHOUT_FACTS, *EXEMPT}
            if key not in found and name not in known and any(map(is_real, own)):
                try:
                    found[key] = equation, found_of(equation, own)
                except Exception:  # JAX has no derivative, or does not map it
                    found[key] = None
        values.update(zip(equation.outvars, outputs, strict=True))
    return [v.val if isinstance(v, jax.extend.core.Literal) else values[v] for v in jaxpr.outvars]


@functools.cache
def examples():
    """Return an example for each primitive, parameters and types of the sweep, by one program."""
    equations = []

    def run(operands):
        found = {}
        for name, case in CASES.items():
            closed = jax.make_jaxpr(flat(case.fun))(*operands[name])
            collect(closed.jaxpr, closed.consts, operands[name], found)
        kept = [each for each in found.values() if each is not None and each[1][0]]
        equations[:] = [equation for equation, _ in kept]
        return [each for _, each in kept]

    results = jax.jit(run)({name: operands_of(case) for name, case in CASES.items()})
    results = jax.tree.map(np.asarray, results)
    return [Example(Equation(e), *each) for e, each in zip(equations, results, strict=True)]


def by_name():
    """Return the examples of each primitive, by its name."""
    found = {}
    for example in examples():
        found.setdefault(example.name, []).append(example)
    assert len(found) > 45 and {"gather", "reduce_sum", "select_n", "sort"} <= set(found)
    return found


def missing(names, exemptions):
    """Return the names that are not exempt; assert that every exemption is needed."""
    assert not (stale := set(exemptions) & set(by_name()) - set(names)), f"not needed: {stale}"
    return sorted(set(names) - set(exemptions))


def test_every_primitive_of_the_sweep_has_a_row_or_a_reason():
    names = {e.name for e in examples()} | set(PRIMITIVES)
    without = names - set(FACTS) - set(control_flow.RULES)
    lacking = sorted(without - set(WITHOUT_FACTS) - set(EXEMPT))
    assert not lacking, f"give each of {lacking} a row in fwdgrad.propagation.facts.FACTS"
    assert not set(WITHOUT_FACTS) & set(FACTS) and all(WITHOUT_FACTS.values())


def test_every_row_is_held_against_derivatives():
    """Except rows that are only elementwise, whose blocks another test compares."""
    without = set(FACTS) & set(PRIMITIVES) - _ONLY_ELEMENTWISE - set(by_name())
    without -= {
        "eq",
        "eq_to",
        "ge",
        "gt",
        "le",
        "le_to",
        "lt",
        "lt_to",
        "ne",
    }  # outputs are boolean
    # Complex; of a mesh; with a derivative that JAX does not map.
    assert without <= {"fft", "pvary", "reduce_window"}


def test_linear_rows_are_linear_and_no_other_primitive_is():
    operands = {
        Linear.FIRST: lambda e: [(0,)],
        Linear.ALL: lambda e: [tuple(e.values)],
        Linear.PRODUCT: lambda e: [(i,) for i in e.values],
        Linear.QUOTIENT: lambda e: [(0,)],
    }
    linear = []
    for name, of_name in by_name().items():
        fact = fact_of(of_name[0].equation.primitive)
        if fact.linear is not None:
            sets = [(e, s) for e in of_name for s in operands[fact.linear](e) if s in e.elsewhere]
            assert sets and all(e.is_linear_in(s) for e, s in sets), name
        elif all(
            e.is_linear_in(tuple(e.values)) or (0 in e.values and e.is_linear_in((0,)))
            for e in of_name
        ):
            linear.append(name)
    assert missing(linear, LINEAR_WITHOUT_A_FACT) == []


def flattened(example, output):
    """Return the Jacobian of one output by all operands, as a matrix."""
    return np.concatenate(
        [
            j.reshape(example.outputs[output].size, -1)
            for (o, _), j in example.jacobians.items()
            if o == output
        ],
        1,
    )


def selects(example):
    """Return True if each entry of the outputs is one entry of the operands, or constant."""
    matrices = [flattened(example, o) for o in example.outputs]
    return all(((m == 0) | (m == 1)).all() and (m.sum(1) <= 1).all() for m in matrices)


def test_selecting_rows_select_entries_and_no_other_primitive_does():
    passing = []
    for name, of_name in by_name().items():
        moves = any(j.any() for e in of_name for j in e.jacobians.values())
        found = moves and all(map(selects, of_name))
        if fact_of(of_name[0].equation.primitive).selects:
            assert found, name
        elif found:
            passing.append(name)
    assert missing(passing, SELECTING_WITHOUT_A_FACT) == []


def test_even_rows_have_slopes_of_at_most_about_one():
    for name, of_name in by_name().items():
        if fact_of(of_name[0].equation.primitive).even_slopes:
            assert max(np.abs(j).max() for e in of_name for j in e.jacobians.values()) < 1.2, name


def kept_apart(example):
    """Yield (operand, its axis, the output's axis, is kept apart) for axes of one size.

    The axis is kept apart if no entry of the output depends on another index along it.
    """
    for (o, i), jacobian in example.jacobians.items():
        shape, ndim = example.outputs[o].shape, example.outputs[o].ndim
        for a, n in enumerate(example.values[i].shape):
            for j in [j for j in range(ndim) if shape[j] == n > 1]:
                paired = np.moveaxis(jacobian, (j, ndim + a), (0, 1))
                if paired.any():
                    yield i, a, j, not paired[~np.eye(n, dtype=bool)].any()


def test_axes_are_kept_apart_if_their_derivatives_are_block_diagonal():
    apart = []
    for example in examples():
        for i, a, j, found in kept_apart(example):
            axes = axes_of(example.equation, i)
            said = axes is not None and a not in axes.mixed and axes.of[j] == (a,)
            assert found or not said, (example.equation, i, a, j)
            if found and not said:
                apart.append(example.name)
    assert missing(apart, APART_WITHOUT_A_FACT) == []


def test_outputs_vary_only_along_axes_that_are_made_of_the_operands_axis():
    """For an operand that varies along one axis."""
    checked = set()
    for example in examples():
        fact = fact_of(example.equation.primitive)
        is_used = fact.linear is None or fact.multiplies or fact.matrix is not None
        if is_used or not (fact.selects or fact.elementwise):
            continue
        for (_, i), jacobian in example.jacobians.items():
            axes, x = axes_of(example.equation, i), example.values[i]
            depends = np.tensordot(jacobian, np.ones(x.shape), x.ndim) != 0
            for a, n in enumerate(x.shape):
                values = np.arange(1.0, n + 1).reshape([n if k == a else 1 for k in range(x.ndim)])
                found = np.tensordot(jacobian, np.broadcast_to(values, x.shape), x.ndim)
                for j in [j for j, of in enumerate(axes.of) if a not in of]:
                    highest = np.where(depends, found, -np.inf).max(j)
                    lowest = np.where(depends, found, np.inf).min(j)
                    assert not (highest > lowest).any(), (example.equation, i, a, j)
                    checked.add(example.name)
    assert len(checked) > 15 and {"reshape", "transpose", "slice", "split"} <= checked


def test_factors_have_rules_exactly_for_linear_primitives_that_rearrange_or_scale():
    rearranging = {
        name for name, fact in FACTS.items()
        if fact.linear is not None and (fact.selects or fact.elementwise)
    }  # fmt: skip
    ruled = {*structural.RULES, *picks.RULES}
    assert ruled - rearranging == {"reduce_sum"}  # its output is used, not followed
    # Where an array is placed in memory its factors are not.
    assert rearranging - ruled == {"device_put", "layout_constraint"}
