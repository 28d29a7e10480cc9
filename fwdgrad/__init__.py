"""Forward gradients in JAX: training without backpropagation.

>>> import jax, jax.numpy as jnp
>>> import fwdgrad
>>> value_and_grad = fwdgrad.forward_value_and_grad(lambda w, x: jnp.mean((x @ w) ** 2))
>>> value, grad = value_and_grad(jax.random.key(0), jnp.ones(3), jnp.eye(3))

`import fwdgrad` needs JAX alone. `fwdgrad.problems` (data sets, models), `fwdgrad.training`,
`fwdgrad.measurement` and `fwdgrad.records` are imported by name and need the extra `experiments`.
"""

from fwdgrad.diagnostics.compare import USUAL_ESTIMATORS, compare
from fwdgrad.diagnostics.comparison import EstimatorComparison
from fwdgrad.diagnostics.explain import explain
from fwdgrad.diagnostics.explanation import Explanation
from fwdgrad.diagnostics.independence import check_examples_independent
from fwdgrad.estimators.aggregation import Mean, Projection
from fwdgrad.estimators.backprop import backprop_value_and_grad
from fwdgrad.estimators.forward import forward_value_and_grad
from fwdgrad.estimators.forward_gradient import Drawn
from fwdgrad.estimators.zeroth_order import evolution_value_and_grad, spsa_value_and_grad
from fwdgrad.modes.chains import Pass, apply_chain, at_weights, pull_back, push_forward
from fwdgrad.modes.jacobians import jacobian, layer_jacobians
from fwdgrad.modes.numerical import numerical_jacobian
from fwdgrad.perturbation.activities import Activities
from fwdgrad.perturbation.control_variates import Guided
from fwdgrad.perturbation.weights import Weights
from fwdgrad.propagation.rules.registry import register_facts, register_rule
from fwdgrad.recurrent.carried_tangents import CarriedTangents
from fwdgrad.recurrent.online import Influence, OnlineCarry, OnlineGradient, online
from fwdgrad.recurrent.rank_one import RankOne
from fwdgrad.recurrent.sketch import Sketch
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored, Split
from fwdgrad.tangents.independent import Normal, Rademacher, Sphere, TangentDistribution
from fwdgrad.tangents.joint import BlockSparse, Orthogonal
from fwdgrad.tangents.low_rank import LowRank
from fwdgrad.util.trees import combine, partition

__version__ = "0.1.0"

__all__ = [
    "USUAL_ESTIMATORS",
    "Activities",
    "BlockSparse",
    "Blocks",
    "CarriedTangents",
    "Drawn",
    "EstimatorComparison",
    "Explanation",
    "Factored",
    "Guided",
    "Influence",
    "LowRank",
    "Mean",
    "Normal",
    "OnlineCarry",
    "OnlineGradient",
    "Orthogonal",
    "Pass",
    "Projection",
    "Rademacher",
    "RankOne",
    "Sketch",
    "Sphere",
    "Split",
    "StructuredTangent",
    "TangentDistribution",
    "Weights",
    "apply_chain",
    "at_weights",
    "backprop_value_and_grad",
    "check_examples_independent",
    "combine",
    "compare",
    "evolution_value_and_grad",
    "explain",
    "forward_value_and_grad",
    "jacobian",
    "layer_jacobians",
    "numerical_jacobian",
    "online",
    "partition",
    "pull_back",
    "push_forward",
    "register_facts",
    "register_rule",
    "spsa_value_and_grad",
]
