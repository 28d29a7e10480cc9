"""Forward gradients in JAX: training without backpropagation.

>>> import jax, jax.numpy as jnp
>>> import fwdgrad
>>> value_and_grad = fwdgrad.forward_value_and_grad(lambda w, x: jnp.mean((x @ w) ** 2))
>>> value, grad = value_and_grad(jax.random.key(0), jnp.ones(3), jnp.eye(3))

`import fwdgrad` needs JAX alone. `fwdgrad.problems` (data sets, models) and `fwdgrad.work`
(training, measuring, records) are imported by name and need the extra `experiments`.
"""

from fwdgrad.core import (
    Activities,
    Blocks,
    BlockSparse,
    Explanation,
    Factored,
    Guided,
    LowRank,
    Mean,
    Normal,
    Orthogonal,
    Pass,
    Projection,
    Rademacher,
    Sphere,
    Split,
    TangentDistribution,
    Weights,
    at_weights,
    backprop_value_and_grad,
    check_examples_independent,
    combine,
    evolution_value_and_grad,
    explain,
    forward_value_and_grad,
    jacobian,
    layer_jacobians,
    numerical_jacobian,
    partition,
    pull_back,
    push_forward,
    spsa_value_and_grad,
)

__version__ = "0.1.0"

__all__ = [
    "Activities",
    "BlockSparse",
    "Blocks",
    "Explanation",
    "Factored",
    "Guided",
    "LowRank",
    "Mean",
    "Normal",
    "Orthogonal",
    "Pass",
    "Projection",
    "Rademacher",
    "Sphere",
    "Split",
    "TangentDistribution",
    "Weights",
    "at_weights",
    "backprop_value_and_grad",
    "check_examples_independent",
    "combine",
    "evolution_value_and_grad",
    "explain",
    "forward_value_and_grad",
    "jacobian",
    "layer_jacobians",
    "numerical_jacobian",
    "partition",
    "pull_back",
    "push_forward",
    "spsa_value_and_grad",
]
