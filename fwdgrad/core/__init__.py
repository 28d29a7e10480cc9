"""Floor 0, the core: tangents and gradient estimators on JAX alone.

Knows JAX and pytrees; never data sets, models, configuration or plots.
"""

from fwdgrad.core.activities import Activities
from fwdgrad.core.aggregation import Mean, Projection
from fwdgrad.core.backprop import backprop_value_and_grad
from fwdgrad.core.blocks import Blocks
from fwdgrad.core.chains import Pass, at_weights, pull_back, push_forward
from fwdgrad.core.estimators import forward_value_and_grad
from fwdgrad.core.explaining import explain
from fwdgrad.core.explanation import Explanation
from fwdgrad.core.factored import Factored, Split
from fwdgrad.core.gradient_free import evolution_value_and_grad, spsa_value_and_grad
from fwdgrad.core.guess import Guided
from fwdgrad.core.independence import check_examples_independent
from fwdgrad.core.jacobians import jacobian, layer_jacobians
from fwdgrad.core.low_rank import LowRank
from fwdgrad.core.numerical import numerical_jacobian
from fwdgrad.core.spaces import Weights
from fwdgrad.core.tangents import Normal, Rademacher, Sphere, TangentDistribution
from fwdgrad.core.together import BlockSparse, Orthogonal
from fwdgrad.core.trees import combine, partition

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
