"""Low-rank tangents: unbiased by exact enumeration, their second moment, their cost and memory."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fwdgrad
from fwdgrad.tangents.factored import Factored, Split
from fwdgrad.tangents.forms import dense, weighted_sum
from tests.estimators.test_forward import Given
from tests.examples import examples
from tests.oracle import normal
from tests.sweeps import thorough_but


def loss_of_matrix(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("rank", [1, 2])
def test_average_over_all_factors_is_the_gradient(rank, dtype, rounding, x64):
    """And E‖g‖² is that of the formula: d ‖∇f‖² at rank one, (d + 2 (1 − 1/r)) ‖∇f‖² at r."""
    m, n = 3, 2 if rank == 2 else 3
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((m, n), (4, m)))
    signs = jnp.array(list(itertools.product([-1, 1], repeat=rank * (m + n))), dtype)

    @jax.jit
    @jax.vmap
    def estimates(entries):
        left = entries[: rank * m].reshape(rank, m, 1) * rank**-0.5
        right = entries[rank * m :].reshape(rank, 1, n)
        tangent = Factored(left.astype(dtype), right, (m, n))
        estimate = fwdgrad.forward_value_and_grad(loss_of_matrix, tangents=Given(tangent))
        return estimate(jax.random.key(0), w, x)[1]

    g = np.asarray(estimates(signs), np.float64)
    exact = np.asarray(jax.grad(loss_of_matrix)(w, x), np.float64)
    norm2 = np.sum(exact**2)
    np.testing.assert_allclose(g.mean(0), exact, atol=rounding * norm2**0.5)
    second_moment = (m * n + 2 * (1 - 1 / rank)) * norm2
    np.testing.assert_allclose(np.mean(np.sum(g**2, (1, 2))), second_moment, rtol=rounding)


def fourth_moment(gradient, rank):
    """E[d⁴]/E[d²]² of d = ⟨G, V⟩ over all signs of all factors."""
    m = len(gradient)
    numbers = itertools.product([1.0, -1.0], repeat=sum(gradient.shape))
    signs = np.array(list(numbers))
    products = np.einsum("ij,si,sj->s", gradient, signs[:, :m], signs[:, m:])
    total = products
    for _ in range(rank - 1):
        total = (total[:, None] + products).ravel()
    return np.mean(total**4) / np.mean(total**2) ** 2


def test_fourth_moment_by_enumeration():
    """κ at rank one, up to 9 where G is of rank one, and 3 + (κ − 3)/r at rank r."""

    def of_signs(u):  # E[(u·a)⁴]/‖u‖⁴
        return 3 - 2 * np.sum(u**4) / np.sum(u**2) ** 2

    u, w = np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0])
    np.testing.assert_allclose(fourth_moment(np.outer(u, w), 1), of_signs(u) * of_signs(w))
    long = fourth_moment(np.ones((6, 6)), 1)
    np.testing.assert_allclose(long, (3 - 2 / 6) ** 2)  # to 9 as both sides grow
    for gradient in (np.outer(u, w), np.random.default_rng(0).normal(size=(3, 2)), np.eye(2)):
        kappa = fourth_moment(gradient, 1)
        for rank in (2, 3):
            expected = 3 + (kappa - 3) / rank
            np.testing.assert_allclose(fourth_moment(gradient, rank), expected, rtol=1e-12)


def test_the_fourth_moment_of_drawn_tangents(key):
    """Of the tangents as they are drawn, to 4.5 standard errors."""
    gradient, n = np.outer([1.0, -2.0, 0.5, 1.0] * 2, [3.0, 1.0, -1.0, 2.0, 1.0]), 20_000
    for rank in (1, 3):
        distribution = fwdgrad.LowRank(rank=rank)
        sample = jax.vmap(lambda k, d=distribution: dense(d.sample(k, jnp.asarray(gradient))))
        v = np.asarray(sample(jax.random.split(key, n)), float)
        powers = np.einsum("ij,sij->s", gradient, v) ** 4 / np.sum(gradient**2) ** 2
        u, w = gradient[:, 0], gradient[0]
        kappa = np.prod([3 - 2 * np.sum(x**4) / np.sum(x**2) ** 2 for x in (u, w)])
        expected = 3 + (kappa - 3) / rank
        assert abs(powers.mean() - expected) < 4.5 * powers.std() / n**0.5


@pytest.mark.parametrize("factors", ["rademacher", "normal"])
def test_large_dense_leaves_are_drawn_by_themselves(factors, key):
    """Of their own keys: equal shapes get other numbers, and what is small is as it was."""
    big = jnp.zeros((20_000,), jnp.bfloat16)
    params = {"a": big, "b": big, "c": jnp.zeros(20_000), "w": jnp.zeros((30, 20))}
    tangent = fwdgrad.LowRank(factors=factors).sample(key, params)
    for name in "abc":
        entries = np.asarray(tangent[name], np.float64)
        assert tangent[name].dtype == params[name].dtype
        # Var v² is 2 for normals, so that of its mean over n is 2/n; Chebyshev, 1e-4, and bf16.
        assert abs(np.mean(entries**2) - 1) < 100 * (2 / 20_000) ** 0.5
        assert factors == "normal" or set(entries) == {-1, 1}
    a, b, c = (np.asarray(tangent[name], np.float64) for name in "abc")
    for x, y in ((a, b), (a, c), (b, c)):  # the mean of products of independent entries
        assert abs(np.mean(x * y)) < 100 * (1 / 20_000) ** 0.5 and (x != y).any()
    assert isinstance(tangent["w"], Factored)


@pytest.mark.parametrize(("rank", "factors"), [(1, "normal"), (3, "normal"), (3, "rademacher")])
def test_second_moment_by_sampling(rank, factors, key):
    """E‖g‖² = ‖G‖² (m n + (q − m n)/r + 2 (1 − 1/r)), q = (m + 2)(n + 2) or m n.

    The samples' own deviation and z = 5.73 give a failure probability of 1e-8, in the normal
    approximation; ‖g‖² has a heavy tail, so its deviation is known to some per cent only.
    """
    m, n, number = 10, 12, 200_000
    gradient = np.random.default_rng(0).normal(size=(m, n)).astype(np.float32)
    distribution = fwdgrad.LowRank(rank=rank, factors=factors)
    estimate = fwdgrad.forward_value_and_grad(
        lambda w: jnp.sum((jnp.eye(m) @ w) * gradient), tangents=distribution
    )

    @jax.jit
    @jax.vmap
    def squares(key):
        return jnp.sum(estimate(key, jnp.zeros((m, n)))[1] ** 2)

    found = np.asarray(squares(jax.random.split(key, number)), np.float64) / np.sum(gradient**2)
    q = (m + 2) * (n + 2) if factors == "normal" else m * n
    expected = m * n + (q - m * n) / rank + 2 * (1 - 1 / rank)
    bound = 5.73 * 1.1 * found.std() / number**0.5
    assert abs(found.mean() - expected) < bound < 0.1 * expected


def test_which_leaves_are_factored_and_along_which_axes(key):
    params = {
        "out in": jnp.zeros((20, 30)),
        "kernel": jnp.zeros((3, 3, 16, 24)),
        "stack": jnp.zeros((4, 24, 20)),
        "embedding": jnp.zeros((50, 30)),
        "bias": jnp.zeros(20),
        "narrow": jnp.zeros((20, 1)),
        "heads": jnp.zeros((20, 4, 10)),
    }

    def loss(p, x):
        x = jnp.mean(jax.lax.conv_general_dilated(
            x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ), (1, 2))  # fmt: skip
        x = jnp.einsum("gbi,gio->gbo", jnp.stack([x] * 4), p["stack"]).sum(0) + p["bias"]
        x = jnp.einsum("bi,ihd->bhd", x, p["heads"]).sum(1) @ p["narrow"][:10]
        return jnp.sum(x) + jnp.sum(p["out in"] @ p["embedding"][jnp.arange(3)].T)

    explanation = fwdgrad.explain(loss, params, jnp.ones((2, 5, 5, 16)))
    ranks = {leaf.name[8:-2]: leaf.rank for leaf in explanation.leaves}
    sizes = {leaf.name[8:-2]: leaf.size for leaf in explanation.leaves}
    assert ranks == {
        "out in": 1, "kernel": 1, "stack": 1, "heads": 1, "embedding": 1,
        "bias": None, "narrow": None,
    }  # fmt: skip
    assert sizes["kernel"] == 3 * 3 * 16 + 24
    assert sizes["stack"] == 4 * (24 + 20)  # a batch of matrices: factors for each
    assert sizes["heads"] == 20 + 4 * 10
    assert sizes["embedding"] == 50 + 30  # rows that are looked up, as a product with one-hot rows
    assert all(leaf.lost == () for leaf in explanation.leaves)


TOKENS = jnp.array([[3, 1, 4], [1, 5, 9]])


def lookup(table, body):
    hidden = jnp.tanh(table[TOKENS] @ body)
    return jnp.mean(hidden**2)


def tied(table, body):
    """The table is looked up, and is the last layer, too."""
    hidden = jnp.tanh(table[TOKENS] @ body)
    scores = jax.nn.log_softmax(hidden @ table.T)
    return -jnp.mean(jnp.take_along_axis(scores, TOKENS[..., None], -1))


def last_only(table, body):
    return lookup(jnp.take(table, jnp.arange(12), axis=0, mode="clip"), body)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("loss", [lookup, tied, last_only])
def test_embeddings_keep_their_factors(loss, number, key):
    """Rows of a table are looked up in one factor; nothing has the size of the table."""
    params = {"table": normal(0, (64, 16)), "body": normal(1, (16, 16))}

    def of_params(p):
        return loss(p["table"], p["body"])

    options = {"tangents": fwdgrad.LowRank(), "num_tangents": number}
    estimate = fwdgrad.forward_value_and_grad(of_params, **options)
    drawn = estimate.draw(key, params)
    value, grad = jax.jit(estimate)(drawn, params)
    rows = [dense(v) for v in drawn.tangents]
    directions = [dict(zip(sorted(params), v, strict=True)) for v in zip(*rows, strict=True)]
    slopes = [jax.jvp(of_params, (params,), (v,)) for v in directions]
    np.testing.assert_allclose(value, slopes[0][0], rtol=1e-6)
    for name, g in grad.items():
        terms = [d * v[name] for (_, d), v in zip(slopes, directions, strict=True)]
        np.testing.assert_allclose(g, sum(terms) / number, rtol=2e-4, atol=1e-6)
    leaves = {leaf.name: leaf for leaf in fwdgrad.explain(of_params, params, **options).leaves}
    table = leaves["params['table']"]
    assert table.rank == 1 and any("gather" in use for use in table.used) and not table.lost


def test_a_distribution_of_the_users_own_factors(key):
    class Ones:
        """Shares one key between all: biased, but it shows that any object can sample factors."""

        def sample(self, key, params, splits):
            assert splits == [Split(rows=(1,), columns=(0,))]  # contracted | kept
            return {"w": Factored(jnp.ones((1, 3, 1)), jnp.ones((1, 1, 4)), (3, 4))}

    params = {"w": jnp.arange(12.0).reshape(3, 4)}
    _, grad = fwdgrad.forward_value_and_grad(lambda p: jnp.sum(p["w"] @ p["w"].T), tangents=Ones())(
        key, params
    )
    assert np.all(grad["w"] == grad["w"][0, 0])


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1; found 0"),
        ({"rank": 1.5}, TypeError, "rank must be an integer of at least 1; found 1.5"),
        ({"factors": "uniform"}, ValueError, '"rademacher" or "normal"; found \'uniform\''),
    ],
)
def test_bad_options(options, kind, message):
    with pytest.raises(kind, match=message):
        fwdgrad.LowRank(**options)


# The algebra of factors.

axes = st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=0, max_size=4)


@examples(8)
@given(axes, st.sampled_from([1, 2, 11]), st.integers(1, 3))
def test_written_out_and_summed(axes, rank, number):
    rng = np.random.default_rng(0)
    shape = tuple(n for n, _, _ in axes)
    left = rng.normal(size=(number, rank, *(n if a else 1 for n, a, _ in axes)))
    right = rng.normal(size=(number, rank, *(n if b else 1 for n, _, b in axes)))
    tangent = Factored(jnp.asarray(left), jnp.asarray(right), shape)
    expected = np.broadcast_to((left * right).sum(1), (number, *shape))
    weights = rng.normal(size=number)

    @jax.jit
    def both(tangent, weights):
        forms = tangent, dense(tangent)
        return tangent.dense(), [weighted_sum(form, weights, jnp.float32) for form in forms]

    written, sums = both(tangent, jnp.asarray(weights))
    np.testing.assert_allclose(written, expected, atol=1e-5)
    for found in sums:
        np.testing.assert_allclose(found, np.tensordot(weights, expected, 1), atol=1e-5)


# What it costs.


def deep_loss(params, x):
    for w in params:
        x = jax.nn.relu(x @ w)
    return jnp.mean(x**2)


def compiled_step(value_and_grad, params, x):
    def step(key, params, x):
        _, grad = value_and_grad(key, params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grad)

    return jax.jit(step, donate_argnums=1).lower(jax.random.key(0), params, x).compile()


def arrays_of_size(text, size):
    """The instructions of the entry computation of a compiled program that make such an array."""
    entry = text[text.index("\nENTRY") :]
    made = re.findall(r"^ +(?:ROOT )?%(\S+) = \w+\[([\d,]+)\]\S* (\S+?)\(", entry, re.MULTILINE)
    return [
        (name, operation)
        for name, shape, operation in made
        if np.prod([int(n) for n in shape.split(",")]) == size and operation != "parameter"
    ]


@pytest.mark.parametrize("num_tangents", [1, 4])
def test_no_array_of_the_size_of_a_weight_but_the_weights(num_tangents, on_cpu):
    """The compiled step of an MLP makes one such array for each weight: the updated weight."""
    width, depth = 128, 3
    params = [jnp.ones((width, width))] * depth
    value_and_grad = fwdgrad.forward_value_and_grad(
        deep_loss, tangents=fwdgrad.LowRank(), num_tangents=num_tangents
    )
    compiled = compiled_step(value_and_grad, params, jnp.ones((8, width)))
    made = arrays_of_size(compiled.as_text(), width * width)
    assert [operation for _, operation in made] == ["fusion"] * depth, made
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * width * width  # not even one
    # And before compilation the pushforward, all but the estimate itself, has none.
    jaxpr = jax.make_jaxpr(value_and_grad.draw)(jax.random.key(0), params, jnp.ones((8, width)))
    assert not [v for e in jaxpr.eqns for v in e.outvars if v.aval.size >= width * width]


@pytest.mark.parametrize(
    ("batch_size", "bound"), thorough_but([(64, 0.15)], [(64, 0.15), (1024, 0.10)])
)
def test_memory_of_a_deep_network(batch_size, bound, on_cpu):
    """Temporary memory of a step beside backprop's: depth 100, width 1024, as in the paper."""
    params = [jax.ShapeDtypeStruct((1024, 1024), "float32")] * 100
    x = jax.ShapeDtypeStruct((batch_size, 1024), "float32")
    low_rank = fwdgrad.forward_value_and_grad(deep_loss, tangents=fwdgrad.LowRank())
    backprop = fwdgrad.backprop_value_and_grad(deep_loss)

    def step(value_and_grad, key, params, x):
        _, grad = value_and_grad(key, params, x)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grad)

    found, reference = (
        jax.jit(lambda *a, f=f: step(f, *a), donate_argnums=1)
        .lower(jax.random.key(0), params, x).compile().memory_analysis().temp_size_in_bytes
        for f in (low_rank, backprop)
    )  # fmt: skip
    assert found < bound * reference, (found, reference)


def test_several_tangents_share_one_primal(key):
    """One product for the primal and all K tangents, and none with the weight's size in K."""
    w, x = jnp.ones((64, 64)), jnp.ones((8, 64))
    estimate = fwdgrad.forward_value_and_grad(
        lambda w, x: jnp.mean(jnp.tanh(jnp.tanh(x @ w) @ w)),
        tangents=fwdgrad.LowRank(),
        num_tangents=5,
    )
    jaxpr = jax.make_jaxpr(estimate)(key, w, x).jaxpr
    with_weight = [
        e.outvars[0].aval.shape
        for e in jaxpr.eqns
        if e.primitive.name == "dot_general" and (64, 64) in [v.aval.shape for v in e.invars]
    ]
    assert with_weight == [(8, 64), (6 * 8, 64)]


def test_tangents_drawn_ahead(key):
    """What `draw` returns gives the estimate of its key."""
    w, x = jnp.ones((6, 5)), jnp.ones((3, 6))
    for number in (1, 3):
        estimate = fwdgrad.forward_value_and_grad(
            loss_of_matrix, tangents=fwdgrad.LowRank(), num_tangents=number
        )
        keys = jax.random.split(key, 4)
        drawn = jax.jit(jax.vmap(lambda k, e=estimate: e.draw(k, w, x)))(keys)
        estimate = jax.jit(estimate)
        for i in range(4):
            one = jax.tree.map(lambda v, i=i: v[i], drawn)
            found, expected = estimate(one, w, x), estimate(keys[i], w, x)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    chunked = fwdgrad.forward_value_and_grad(loss_of_matrix, num_tangents=4, chunk_size=2)
    assert not chunked.draws_ahead
    with pytest.raises(ValueError, match=r"chunk_size=2 below num_tangents=4 .* leave chunk_size"):
        chunked.draw(key, w, x)
