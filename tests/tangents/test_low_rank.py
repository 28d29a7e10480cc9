"""Low-rank tangents: unbiased by exact enumeration, second and fourth moments, embeddings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.tangents.factored import Factored, Split
from fwdgrad.tangents.forms import dense
from tests.estimators.test_forward import Given
from tests.oracle import normal
from tests.sweeps import thorough_but


def loss_of_matrix(w, x):
    return jnp.sum(jnp.tanh(x @ w) ** 2)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("rank", [1, 2])
def test_the_mean_over_all_factors_is_the_gradient(rank, dtype, rounding, x64):
    """Its second moment is (d + 2 (1 − 1/r)) ‖∇f‖² at rank r, so d ‖∇f‖² at rank one."""
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
    """Return E[s⁴]/E[s²]² of the directional derivative s = ⟨G, V⟩, over all signs of factors."""
    m = len(gradient)
    numbers = itertools.product([1.0, -1.0], repeat=sum(gradient.shape))
    signs = np.array(list(numbers))
    products = np.einsum("ij,si,sj->s", gradient, signs[:, :m], signs[:, m:])
    total = products
    for _ in range(rank - 1):
        total = (total[:, None] + products).ravel()
    return np.mean(total**4) / np.mean(total**2) ** 2


def test_the_fourth_moment_over_all_factors():
    """It is κ at rank one, at most 9 for a gradient of rank one, and 3 + (κ − 3)/r at rank r."""

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


def test_the_fourth_moment_of_sampled_tangents(key):
    """The empirical moment agrees with the formula within 4.5 standard errors."""
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
def test_large_dense_leaves_have_keys_of_their_own(factors, key):
    """Leaves of one shape get independent tangents of variance one."""
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
def test_the_second_moment_of_sampled_estimates(rank, factors, key):
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


def test_matrices_of_the_loss_are_factored_along_the_axes_of_their_product(key):
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
    """Return a loss with tied embeddings: the table is looked up and is the last layer."""
    hidden = jnp.tanh(table[TOKENS] @ body)
    scores = jax.nn.log_softmax(hidden @ table.T)
    return -jnp.mean(jnp.take_along_axis(scores, TOKENS[..., None], -1))


def last_only(table, body):
    return lookup(jnp.take(table, jnp.arange(12), axis=0, mode="clip"), body)


@pytest.mark.parametrize("number", thorough_but([3], [1, 3]))
@pytest.mark.parametrize("loss", [lookup, tied, last_only])
def test_embeddings_keep_their_factors(loss, number, key):
    """Rows are looked up in one factor, and no tangent has the size of the table."""
    params = {"table": normal(0, (64, 16)), "body": normal(1, (16, 16))}

    def of_params(p):
        return loss(p["table"], p["body"])

    options = {"tangents": fwdgrad.LowRank(), "num_tangents": number}
    estimate = fwdgrad.forward_value_and_grad(of_params, **options)
    drawn = estimate.draw(key, params)
    value, grad = jax.jit(estimate.along)(drawn, params)
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


def test_a_users_distribution_samples_factors(key):
    class Ones:
        """A distribution of constant factors: biased, but any object can sample factors."""

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
def test_invalid_options_are_errors(options, kind, message):
    with pytest.raises(kind, match=message):
        fwdgrad.LowRank(**options)


def test_k_tangents_share_one_primal_product(key):
    """One matrix product takes the primal and all K tangents: 1 + K rows for each of x."""
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


def test_tangents_drawn_ahead_give_the_estimate_of_their_key(key):
    w, x = jnp.ones((6, 5)), jnp.ones((3, 6))
    for number in (1, 3):
        estimate = fwdgrad.forward_value_and_grad(
            loss_of_matrix, tangents=fwdgrad.LowRank(), num_tangents=number
        )
        keys = jax.random.split(key, 4)
        drawn = jax.jit(jax.vmap(lambda k, e=estimate: e.draw(k, w, x)))(keys)
        along, estimate = jax.jit(estimate.along), jax.jit(estimate)
        for i in range(4):
            one = jax.tree.map(lambda v, i=i: v[i], drawn)
            found, expected = along(one, w, x), estimate(keys[i], w, x)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    chunked = fwdgrad.forward_value_and_grad(loss_of_matrix, num_tangents=4, chunk_size=2)
    assert not chunked.draws_ahead
    with pytest.raises(ValueError, match=r"chunk_size=2 below num_tangents=4 .* leave chunk_size"):
        chunked.draw(key, w, x)
