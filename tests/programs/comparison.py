"""The oracles of programs of other libraries: `jax.jvp` of the whole loss, and `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import hadamard

import fwdgrad
from fwdgrad.tangents.forms import dense

pytest.importorskip("numpyro", reason="needs the extra [programs]")

ROUNDING = 1e-9
DISTRIBUTIONS = (fwdgrad.Normal(), fwdgrad.LowRank(), fwdgrad.BlockSparse())
CASES = [(tangents, k) for tangents in DISTRIBUTIONS for k in (1, 3)]
FEW = [(fwdgrad.Normal(), 1), (fwdgrad.LowRank(), 3), (fwdgrad.BlockSparse(), 3)]


def in_float64(params):
    """Return parameters with all floating leaves in float64."""
    theta, rest = fwdgrad.partition(params)
    return fwdgrad.combine(jax.tree.map(lambda x: x.astype("float64"), theta), rest)


def assert_same(found, expected, rounding=ROUNDING):
    """Assert that leaves agree to rounding, relative to the largest entry of all leaves."""
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert np.isfinite(scale) and scale > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rounding * scale),
        found, expected,
    )  # fmt: skip


def check_estimates(loss, params, *args, plain=None, cases=CASES, rounding=ROUNDING):
    """Assert that value and estimate are those of `jax.jvp`, (1/K) Σ_k (∇f·v_k) v_k.

    Args:
      loss, params, args: the loss and its arguments.
      plain: an equal loss that `jax.jvp` differentiates, if it cannot differentiate `loss`.
      cases: pairs of a distribution and K.
      rounding: the relative error.
    """
    theta, rest = fwdgrad.partition(params)
    key = jax.random.key(0)

    def of(theta):
        return (plain or loss)(fwdgrad.combine(theta, rest), *args)

    push = jax.jit(lambda v: jax.jvp(of, (theta,), (v,)))
    for tangents, num_tangents in cases:
        value_and_grad = fwdgrad.forward_value_and_grad(
            loss, tangents=tangents, num_tangents=num_tangents
        )

        def estimate(key, theta, value_and_grad=value_and_grad):
            value, grad = value_and_grad(key, fwdgrad.combine(theta, rest), *args)
            return value, fwdgrad.partition(grad)[0]

        drawn = value_and_grad.draw(key, params, *args).tangents
        v = jax.tree.unflatten(jax.tree.structure(theta), [dense(each) for each in drawn])
        pushed = [push(jax.tree.map(lambda x, k=k: x[k], v)) for k in range(num_tangents)]
        slopes = jnp.stack([slope for _, slope in pushed])
        value, grad = jax.jit(estimate)(key, theta)
        np.testing.assert_allclose(value, pushed[0][0], rtol=rounding)
        expected = jax.tree.map(lambda x, d=slopes / num_tangents: jnp.tensordot(d, x, 1), v)
        assert_same(grad, expected, rounding)


def lost_by_leaf(loss, params, *args):
    """Return for each leaf the primitives that lose its factors, or that read it if it has none.

    A leaf without factors is a matrix that no product reads.
    """
    explanation = fwdgrad.explain(loss, params, *args)
    assert not explanation.why_whole and explanation.forward.operations > 0
    found = {}
    for leaf in explanation.leaves:
        if leaf.rank is not None:
            found[leaf.name] = {where.split()[0] for where in leaf.lost}
        elif leaf.reason.startswith("no matrix: read by ") and len(leaf.shape) > 1:
            readers = leaf.reason.removeprefix("no matrix: read by ").split(", ")
            found[leaf.name] = {where.split()[0] for where in readers}
    return found


def mean_over_signs(value_and_grad, params, *args):
    """Return value and exact mean of an estimate over the signs of all sampled entries.

    An estimate is quadratic in the signs, so orthogonal signs have the same mean as all of them:
    the columns of a Hadamard matrix without the first, which is constant. Each example flips some
    signs of its own.
    """
    drawn = value_and_grad.draw(jax.random.key(0), params, *args)
    leaves, structure = jax.tree.flatten(drawn)
    number = len(jax.tree.leaves(args)[0]) if args else 0
    own = [int(x.ndim > 0 and x.shape[0] == number) for x in leaves]
    sizes = [int(np.prod(x.shape[i:])) for x, i in zip(leaves, own, strict=True)]
    ends = np.cumsum([0, *sizes])
    rows = 1 << int(ends[-1]).bit_length()
    signs = jnp.asarray(hadamard(rows)[:, 1 : ends[-1] + 1], jnp.float64)
    random = np.random.default_rng(0)
    flips = [random.choice([-1.0, 1.0], x.shape) for x in leaves]

    def estimate(row):
        parts = [
            (row[i:j].reshape(x.shape[k:]) * flip * abs(x)).astype(x.dtype)
            for x, k, i, j, flip in zip(leaves, own, ends[:-1], ends[1:], flips, strict=True)
        ]
        value, grad = value_and_grad.along(jax.tree.unflatten(structure, parts), params, *args)
        return value, fwdgrad.partition(grad)[0]

    values, grads = jax.jit(lambda signs: jax.lax.map(estimate, signs))(signs)
    return values[0], jax.tree.map(lambda g: g.mean(0), grads)


WEIGHTS = (fwdgrad.Weights(layerwise=True), fwdgrad.Weights(exact_last=True))
ACTIVITIES = (fwdgrad.Activities(), fwdgrad.Activities(layerwise=True, exact_last=True))
SPACES = (*WEIGHTS, *ACTIVITIES)


def check_spaces(loss, params, *args, spaces=SPACES, plain=None, rounding=ROUNDING):
    """Assert that the mean of the estimate is the gradient in each space.

    If a space is `Activities`, the check of independent examples must allow the loss, too.
    """
    if any(isinstance(space, fwdgrad.Activities) for space in spaces):
        fwdgrad.check_examples_independent(loss, params, *args)
    theta, rest = fwdgrad.partition(params)
    value, expected = jax.jit(
        jax.value_and_grad(lambda t: (plain or loss)(fwdgrad.combine(t, rest), *args))
    )(theta)
    for space in spaces:
        value_and_grad = fwdgrad.forward_value_and_grad(
            loss, tangents=fwdgrad.Rademacher(), space=space
        )
        found, grad = mean_over_signs(value_and_grad, params, *args)
        np.testing.assert_allclose(found, value, rtol=rounding)
        assert_same(grad, expected, rounding)
