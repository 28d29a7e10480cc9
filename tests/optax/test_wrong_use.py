"""Wrong use of `forward_gradient`: an error names the argument, and the remedy."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from fwdgrad.optax import forward_gradient
from tests.optax.network import IS_FREE, LABELS, PARAMS, X, Y, loss


def call(tx=None, updates=None, params=PARAMS, **extra_args):
    tx = optax.chain(forward_gradient(0), optax.adamw(0.1)) if tx is None else tx
    extra_args = {"value_fn": loss, "x": X, "y": Y, **extra_args}
    return tx.update(updates, tx.init(PARAMS), params, **extra_args)


_FUN = "fun is value_fn, an argument of the update of forward_gradient."
WHOLE = optax.chain(forward_gradient(0), optax.sgd(0.1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"params": None}, ValueError, "params must be given to update: tx.update(None, state, "),
        ({"value_fn": None}, TypeError, "value_fn must be the loss, a function of params, given"),
        ({"value_fn": 1.0}, TypeError, "value_fn=loss, x=x, y=y); found float"),
        ({"updates": PARAMS}, ValueError, "updates must be None, since forward_gradient makes"),
        ({"updates": PARAMS}, ValueError, "found 3 arrays. Make it the first of a chain"),
        (
            {"value_fn": lambda params, x, targets: 0.0},
            TypeError,
            "by name, as x and y in tx.update(None, state, params, value_fn=loss, x=x, y=y): "
            "missing a required argument: 'targets'; found x, y",
        ),
        ({"params": {**PARAMS, "n": jnp.arange(2)}}, TypeError, "params['n'] must be an array of"),
        ({"params": {**PARAMS, "n": 2.0}}, TypeError, "found float. An optimizer may change it"),
        (
            {"tx": forward_gradient(0, mask={"w": 1.0, "b": True, "out": True})},
            TypeError,
            "mask['w'] must be True or False, known before tracing; found float",
        ),
    ],
)  # fmt: skip
def test_a_wrong_call_names_the_argument_and_the_remedy(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(**options)


@pytest.mark.parametrize(
    ("options", "message", "note"),
    [
        ({"value_fn": lambda params, x: x}, "scalar loss, of shape (); found shape (6, 3)", _FUN),
        ({"value_fn": lambda params: (0.0, 1)}, "must return a scalar loss; found a tuple", _FUN),
        ({"tx": forward_gradient(0, mask={"w": True})}, "key", "mask must have the structure of "),
    ],
)  # fmt: skip
def test_an_error_of_another_part_has_a_note(options, message, note):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)) as caught:
        call(**options)
    assert any(found.startswith(f"fwdgrad: {note}") for found in caught.value.__notes__)


@pytest.mark.parametrize(
    "around",
    [
        optax.MultiSteps(WHOLE, 2),
        optax.apply_if_finite(WHOLE, 2),
        optax.masked(WHOLE, IS_FREE),
        optax.partition({"adam": WHOLE, "none": optax.set_to_zero()}, LABELS),
        optax.conditionally_mask(WHOLE, lambda step: step > 1),
    ],
    ids=["MultiSteps", "apply_if_finite", "masked", "partition", "conditionally_mask"],
)
def test_a_wrapper_around_the_estimate_is_an_error(around):
    """It would average, test or mask the updates that go in, which are none."""
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    with pytest.raises(ValueError, match="go around the optimizer alone"):
        call(around, updates=zeros)
    with pytest.raises((ValueError, TypeError)):  # of JAX: None does not fit params
        call(around, updates=None)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ([jax.random.split(jax.random.key(0))], {}, ValueError, "key must be one key"),
        (["0"], {}, TypeError, "key must be a typed PRNG key"),
        ([0], {"num_tangents": 0}, ValueError, "num_tangents must be at least 1"),
        ([0], {"tangent": None}, TypeError, "unexpected keyword argument 'tangent'"),
        ([0], {"has_aux": True}, TypeError, "forward_gradient has no option has_aux: its state"),
        ([0], {"estimator": "spsa"}, TypeError, "estimator must be a function of the loss"),
    ],
)
def test_a_wrong_option_is_an_error_at_once(args, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        forward_gradient(*args, **options)
