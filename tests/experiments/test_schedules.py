"""Learning-rate schedules of optax in configs; one that does not change is an error."""

import jax.numpy as jnp
import optax
import pytest

from experiments.common import from_config, settings


def with_schedule(compose, name, **arguments):
    cfg = compose("train", "optimizer=cosine", "num_steps=40")
    cfg.optimizer.learning_rate = {"_target_": f"optax.{name}", **arguments}
    return cfg


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("linear_schedule", {"init_value": 0.0, "end_value": 0.1, "transition_steps": 20}),
        ("exponential_decay", {"init_value": 0.1, "transition_steps": 10, "decay_rate": 0.5}),
        ("piecewise_constant_schedule",
         {"init_value": 0.1, "boundaries_and_scales": {10: 0.5, 30: 0.1}}),
        ("warmup_cosine_decay_schedule",
         {"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 10, "decay_steps": 40}),
    ],
)  # fmt: skip
def test_any_schedule_of_optax(compose, name, arguments):
    cfg = with_schedule(compose, name, **arguments)
    settings.check(cfg, "train")
    optimizer, schedule = from_config.optimizer(cfg), getattr(optax, name)(**arguments)
    state = optimizer.init(jnp.ones(()))
    for step in range(40):
        update, state = optimizer.update(jnp.ones(()), state)
        assert update == -schedule(step)
    assert from_config.label(cfg).endswith(name) and from_config.identity_config(cfg)["optimizer"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("exponential_decay", {"init_value": 0.1, "transition_steps": 0, "decay_rate": 0.5}),
        ("exponential_decay", {"init_value": 0.1, "transition_steps": 100, "decay_rate": 0.5,
                               "staircase": True}),
        ("linear_schedule", {"init_value": 0.1, "end_value": 0.0, "transition_steps": 0}),
        ("polynomial_schedule", {"init_value": 0.1, "end_value": 0.1, "power": 1,
                                 "transition_steps": 40}),
        ("piecewise_constant_schedule", {"init_value": 0.1}),
        ("cosine_decay_schedule", {"init_value": 0.0, "decay_steps": 40}),
    ],
)  # fmt: skip
def test_a_constant_schedule_raises(compose, name, arguments):
    cfg = with_schedule(compose, name, **arguments)
    message = rf"^optimizer.learning_rate: optax.{name} is 0(.1)? at all steps from 0 to 40\. "
    with pytest.raises(ValueError, match=message):
        from_config.run(cfg)


def test_a_constant_rate_that_is_meant(compose):
    assert (
        from_config._learning_rate(with_schedule(compose, "constant_schedule", value=0.1))(3) == 0.1
    )
    cfg = compose("train", "optimizer.learning_rate.rate=0", "learning_rate=0.1")
    assert from_config._learning_rate(cfg)(3) == 0.1
