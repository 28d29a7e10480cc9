"""Every primitive that JAX differentiates, with tangents in every form, against `jax.jvp`.

The table of functions is `tests.propagation.primitives`. One compiled program evaluates a function
with all forms of tangents, and `jax.jvp` of the function along the dense tangents.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.propagation.interpreter import Context, propagate
from fwdgrad.tangents.forms import is_structured
from fwdgrad.util.jax_internals import inner_jaxprs, read_program
from tests.propagation.primitives import CASES, elementwise
from tests.propagation.primitives.case import PRIMITIVES
from tests.propagation.primitives.exemptions import BY_VERSION, EXEMPT
from tests.propagation.primitives.tangents import (
    combinations,
    flat,
    materialize,
    operands_of,
    tangents_of,
    wide,
)

pytestmark = pytest.mark.thorough

ROUNDING = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 2e-4}


def by_jax(fun, operands, tangents, mapped=True):
    """Return the tangents of the outputs by `jax.jvp` of the function."""

    def push(*tangents):
        pushed = jax.jvp(fun, tuple(operands), tangents)[1]
        return [t for t in pushed if t.dtype != jax.dtypes.float0]

    if mapped:
        return jax.vmap(push)(*tangents)
    return jax.lax.map(lambda v: push(*v), tangents)


def through_a_layer(fun):
    """Return the function of operands that a layer made: each row is a mean of rows."""

    def layer(x):
        if x.ndim != 2:
            return x
        weights = 1.0 + np.arange(len(x) ** 2).reshape(len(x), -1) % 3
        return jnp.asarray(weights / weights.sum(1, keepdims=True), x.dtype) @ x

    return lambda *operands: fun(*map(layer, operands))


def evaluated(programs):
    """Return outputs and tangents by the interpreter and by JAX, for each program.

    A program is (fun, operands, variations, mapped). All are evaluated in one compiled program,
    where `jax.jvp` is mapped over the tangents of all variations at once.
    """

    def run(inputs):
        results = []
        for (fun, _, _, mapped), (operands, drawn, arrays) in zip(programs, inputs, strict=True):
            jaxpr = jax.make_jaxpr(fun)(*operands)
            pushed = [propagate(Context(), read_program(jaxpr), operands, v) for v in drawn]
            expected = by_jax(fun, operands, arrays, mapped)
            results.append((pushed[0][0], fun(*operands), [t for _, t in pushed], expected))
        return results

    inputs = []
    for _, operands, variations, _ in programs:
        drawn = [tangents_of(operands, *each) for each in variations]
        each = [
            [materialize(t, k, x) for x, t in zip(operands, v, strict=True)]
            for v, (k, _) in zip(drawn, variations, strict=True)
        ]
        inputs.append((operands, drawn, [*map(np.concatenate, zip(*each, strict=True))]))
    return jax.jit(run)(inputs)


def check(name, programs):
    """Assert that outputs and tangents agree for each (fun, operands, variations)."""
    programs = [(*each, CASES[name].mapped) for each in programs]
    for (_, operands, variations, _), (outputs, primals, found, expected) in zip(
        programs, evaluated(programs), strict=True
    ):
        where = f"{name}, {[f'{x.dtype}{list(x.shape)}' for x in operands]}"
        for ours, theirs in zip(outputs, primals, strict=True):
            assert_close(ours, theirs, where)
        inexact = [jnp.issubdtype(y.dtype, jnp.inexact) for y in outputs]
        assert sum(inexact) == len(expected), where
        start = 0
        for (num_tangents, forms), tangents in zip(variations, found, strict=True):
            theirs = iter(expected)
            for y, t, moves in zip(outputs, tangents, inexact, strict=True):
                assert moves or t is None, where
                if moves:
                    said = f"{where}, K = {num_tangents}, {forms}"
                    assert t is None or t.dtype == y.dtype, said
                    rows = next(theirs)[start : start + num_tangents]
                    assert_close(materialize(t, num_tangents, y), rows, said)
            start += num_tangents


def assert_close(ours, theirs, where):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
    rounding = ROUNDING.get(str(ours.dtype), 2e-4)
    ours, theirs = ours.astype(wide(ours)), theirs.astype(wide(ours))
    finite = np.isfinite(theirs)
    assert finite.all() or "[0" in where or ", 0" in where, where  # the maximum of no entries
    scale = max(1e-3, np.abs(theirs[finite]).max(initial=0))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rounding * scale, err_msg=where)


@pytest.mark.parametrize("name", CASES)
def test_tangents_of_every_form_are_those_of_jvp(name):
    case = CASES[name]
    fun, operands = flat(case.fun), operands_of(case)
    n = len(operands)
    programs = [(fun, operands, [*combinations(operands)])]
    if any(x.ndim == 2 for x in operands):
        programs.append((through_a_layer(fun), operands, [(3, ["rank 1"] * n)]))
    # In half precision if JAX takes it.
    for dtype, each in {"float16": (1, ["rank 1"] * n), "bfloat16": (3, ["dense"] * n)}.items():
        of_dtype = operands_of(case, dtype=dtype if case.half else "float32")
        programs.append((fun, of_dtype, [each]))
    check(name, programs)


def shapes_by_jax(fun, operands):
    """Return the shapes of three tangents of each output, or None if JAX raises an error."""
    tangents = [jnp.zeros((3, *x.shape), x.dtype) for x in operands]
    try:
        return jax.eval_shape(lambda x, v: by_jax(fun, x, v), operands, tangents)
    except Exception:
        return None


@pytest.mark.parametrize("empty", [0, 1])
def test_tangents_of_operands_without_entries_are_those_of_jvp(empty):
    """With no entries along the first or the second axis, if JAX takes such operands."""
    taken = 0
    for name, case in CASES.items():
        shapes = [tuple(0 if i == empty else n for i, n in enumerate(s)) for s in case.shapes]
        fun, operands = flat(case.fun), operands_of(case, shapes)
        expected = shapes_by_jax(fun, operands) if case.mapped else None
        if expected is None or not any(x.size == 0 for x in operands):
            continue
        taken += 1
        jaxpr = jax.make_jaxpr(fun)(*operands)
        forms = ("rank 2", f"blocks of axis {empty}", f"blocks of axis {1 - empty}")
        variations = [(3, [form] * len(operands)) for form in forms]
        for each in variations:
            outputs, found = jax.eval_shape(
                lambda x, v, j=jaxpr: propagate(Context(), read_program(j), x, v),
                operands,
                tangents_of(operands, *each),
            )
            inexact = [jnp.issubdtype(y.dtype, jnp.inexact) for y in outputs]
            pushed = [t for t, moves in zip(found, inexact, strict=True) if moves]
            for t, of_jax in zip(pushed, expected, strict=True):
                shape = t if t is None else t.shape if is_structured(t) else t.shape[1:]
                assert shape in (None, of_jax.shape[1:]), f"{name}, {each}"
        # A Fourier transform of no entries has entries, and JAX does not compile it.
        if any(t.size for t in expected) and name != "rfft":
            check(name, [(fun, operands, variations)])
    assert taken > 150


def test_tangents_of_elementwise_functions_of_scalars_are_those_of_jvp():
    programs = []
    for case in elementwise.CASES.values():
        fun, operands = flat(case.fun), operands_of(case, [()] * len(case.shapes))
        if shapes_by_jax(fun, operands) is not None:
            programs.append((fun, operands, [(3, ["rank 1"] * len(operands))]))
    assert len(programs) > 80
    check("sin", programs)


def test_tangents_beside_elementwise_functions_of_integers_are_those_of_jvp():
    """An integer result is multiplied by a value with a tangent."""
    programs = []
    for case in elementwise.CASES.values():
        whole = [jnp.arange(24).reshape(4, 6) % 3 + 1 for _ in case.shapes]

        def fun(x, case=case, whole=whole):
            return [x * y.astype(x.dtype) for y in jax.tree.leaves(case.fun(*whole))]

        x = operands_of(CASES["sin"])
        if shapes_by_jax(fun, x) is not None:
            programs.append((fun, x, [(3, ["rank 1"]), (3, ["blocks of axis 1"])]))
    assert len(programs) > 40
    check("sin", programs)


def primitives_in(jaxpr):
    """Yield the names of the primitives of a jaxpr and of all inner jaxprs but kernels."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in inner_jaxprs(equation):
            yield from primitives_in(inner)


def covered():
    names = set()
    for case in CASES.values():
        names.update(primitives_in(jax.make_jaxpr(flat(case.fun))(*operands_of(case)).jaxpr))
    return names


def test_every_primitive_that_jax_differentiates_is_covered_or_exempt():
    """A primitive of a newer JAX fails here until it has a function or a reason for none."""
    names = covered()
    assert names >= {"custom_jvp_call", "jit", "shard_map", "cond", "erfc"}
    missing = sorted(set(PRIMITIVES) - names - set(EXEMPT))
    assert not missing, f"add a function to tests/propagation/primitives for each of {missing}"
    assert not (stale := sorted(names & set(EXEMPT) - BY_VERSION)), f"covered by now: {stale}"
    assert all(EXEMPT.values())
