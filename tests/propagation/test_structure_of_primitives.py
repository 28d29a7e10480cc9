"""Primitives that keep the structure of a tangent, by abstract evaluation of the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fwdgrad.propagation.facts import FACTS
from fwdgrad.propagation.interpreter import Context, propagate
from fwdgrad.propagation.rules import picks, structural
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored
from fwdgrad.util.jax_internals import inner_jaxprs, is_opaque, read_program
from tests.propagation.primitives import CASES
from tests.propagation.primitives.case import PRIMITIVES
from tests.propagation.primitives.tangents import flat, operands_of, tangents_of

pytestmark = pytest.mark.thorough


def forms_after(name, form):
    """Return the tangents of the outputs, abstract, if all operands have tangents of one form."""
    case = CASES[name]
    operands = operands_of(case)
    jaxpr = jax.make_jaxpr(flat(case.fun))(*operands)
    tangents = tangents_of(operands, 3, [form] * len(operands))

    def push(operands, tangents):
        return propagate(Context(), read_program(jaxpr), operands, tangents)[1]

    return jax.eval_shape(push, operands, tangents)


def single(name):
    """Return the equation of a function of one primitive that is no call or kernel, else None."""
    case = CASES[name]
    equations = jax.make_jaxpr(flat(case.fun))(*operands_of(case)).jaxpr.eqns
    plain = len(equations) == 1 and not inner_jaxprs(equations[0]) and not is_opaque(equations[0])
    return equations[0] if plain else None


def elementwise_by_their_derivatives(names):
    """Return the functions whose every output entry depends on the same operand entry alone."""

    def off_diagonal(fun, operands):
        """Return the sum of |derivatives| of each entry along tangents that are zero there."""

        def push(unit):
            others = [(1 - unit) * (1 + jnp.arange(unit.size).reshape(unit.shape))] * len(operands)
            pushed = jax.jvp(fun, tuple(operands), tuple(others))[1]
            return sum(jnp.abs(t * unit).sum() for t in pushed if t.dtype != jax.dtypes.float0)

        units = jnp.eye(operands[0].size).reshape(-1, *operands[0].shape)
        return jax.vmap(push)(units).sum()

    pairs = {}
    for name in names:
        fun, operands = flat(CASES[name].fun), operands_of(CASES[name])
        shapes = {y.shape for y in (*jax.eval_shape(fun, *operands), *operands)}
        if len(shapes) == 1 and CASES[name].mapped:
            pairs[name] = fun, operands

    def all_of_them(operands):
        return {n: off_diagonal(fun, operands[n]) for n, (fun, _) in pairs.items()}

    found = jax.jit(all_of_them)({name: operands for name, (_, operands) in pairs.items()})
    return [name for name in pairs if found[name] == 0]


ONE_PRIMITIVE = [name for name in CASES if single(name) is not None]


def test_every_elementwise_primitive_keeps_blocks():
    """Derivatives find the elementwise primitives, so a row that FACTS lacks fails here."""
    elementwise = elementwise_by_their_derivatives(ONE_PRIMITIVE)
    assert len(elementwise) > 60 and {"erfc", "exp2", "sinh", "clamp"} <= set(elementwise)
    lost = [
        f"{name}, blocks of axis {axis}"
        for name in elementwise
        for axis in range(len(CASES[name].shapes[0]))
        for v in forms_after(name, f"blocks of axis {axis}")
        if not (isinstance(v, Blocks) and v.axis == axis)
    ]
    assert not lost, f"add these to fwdgrad.propagation.facts.FACTS: {lost}"


def test_elementwise_names_are_names_of_primitives():
    """In this version of JAX, or in the list of names of other versions."""
    elsewhere = {
        "log2", "one_minus_square", "polynomial", "mulhi", "nextafter", "stage", "tie",
        "xla_metadata_value", "igamma_grad_a", "random_gamma_grad", "zeta", "population_count",
        "clz",
    }  # fmt: skip
    assert set(PRIMITIVES) | elsewhere >= {n for n, fact in FACTS.items() if fact.elementwise}


ROWS, COLUMNS = "blocks of axis 0", "blocks of axis 1"
KEPT_APART = {  # (function, blocks): the axis of its outputs that is cut then
    **{(f"{name}, axis {i}", (ROWS, COLUMNS)[1 - i]): 1 - i for i in (0, 1) for name in (
        "rev", "sort", "softmax", "standardize", "cumsum", "cumsum, reversed", "cumprod", "cummax",
        "cummin", "cumlogsumexp", "concatenate",
    )},
    **{(f"{name}, axis {i}", (ROWS, COLUMNS)[1 - i]): 0 for i in (0, 1) for name in (
        "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "logsumexp",
    )},
    **{
        (f"reduce_window_{name}", f"blocks of axis {i}"): i
        for name in ("sum", "max", "min", "max, padded") for i in (0, 3)
    },
    ("gather, fill", COLUMNS): 1, ("gather of columns", ROWS): 0,
    ("dynamic_index_in_dim", COLUMNS): 0, ("slice, axis 0", COLUMNS): 1, ("pad", COLUMNS): 1,
    ("split", ROWS): 0, ("stack", ROWS): 0, ("stack", COLUMNS): 2, ("unstack", ROWS): 0,
    ("tile", ROWS): 0, ("top_k", ROWS): 0, ("sort, two operands", ROWS): 0, ("fft", ROWS): 0,
    ("transpose", ROWS): 1, ("expand_dims", COLUMNS): 2, ("gelu, exact", COLUMNS): 1,
    ("relu", ROWS): 0, ("custom_jvp_call of entries", COLUMNS): 1, ("jit", ROWS): 1,
}  # fmt: skip


@pytest.mark.parametrize(("name", "form"), [pair for pair in KEPT_APART if pair[0] in CASES])
def test_blocks_are_kept_along_an_axis_that_is_kept_apart(name, form):
    after = [v for v in forms_after(name, form) if v is not None]
    assert after and all(isinstance(v, Blocks) for v in after)
    assert {v.axis for v in after} == {KEPT_APART[name, form]}


def test_every_layout_primitive_keeps_factors():
    """A row that is added to the rules needs a function in the sweep."""
    names = {*structural.RULES, *picks.RULES} - {"stop_gradient", "pvary"}
    not_here = names - set(PRIMITIVES)
    kept = {
        single(name).primitive.name
        for name in ONE_PRIMITIVE
        if all(isinstance(v, Factored) for v in forms_after(name, "rank 1"))
    }
    kept |= {  # where one operand has a tangent, or beside equations of integers alone
        primitive
        for name, primitive in {
            "gather, fill": "gather", "pad": "pad",
        }.items()
        if name in CASES and isinstance(forms_after(name, "rank 1")[0], Factored)
    }  # fmt: skip
    assert names - not_here - kept == set()


def test_a_reduction_of_several_operands_keeps_blocks():
    """Products of rows, and the sums of these with those before them."""

    def fun(x, y):
        def step(a, b):
            return a[0] * b[0], a[1] + b[1] * a[0]

        one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
        return jax.lax.reduce((x, y), (one, zero), step, (1,))

    x = jnp.linspace(0.5, 1.5, 24).reshape(4, 6)
    operands, tangents = (x, x + 1), (Blocks(x - 1, 0, 2), Blocks(x * x, 0, 2))
    jaxpr = jax.make_jaxpr(fun)(*operands)
    pushed = propagate(Context(), read_program(jaxpr), operands, tangents)[1]
    assert all(isinstance(v, Blocks) and v.axis == 0 for v in pushed)
    for k in range(2):
        expected = jax.jvp(fun, operands, tuple(v.dense()[k] for v in tangents))[1]
        for v, t in zip(pushed, expected, strict=True):
            np.testing.assert_allclose(v.dense()[k], t, rtol=1e-5)
