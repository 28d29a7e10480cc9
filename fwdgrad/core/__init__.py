"""Floor 0, the core: tangents and gradient estimators on JAX alone.

Knows JAX and pytrees; never data sets, models, configuration or plots.
"""

from fwdgrad.core.chains import Pass, at_weights, pull_back, push_forward
from fwdgrad.core.estimators import backprop_value_and_grad, forward_value_and_grad
from fwdgrad.core.explanation import Explanation, explain
from fwdgrad.core.factored import Factored, Split
from fwdgrad.core.jacobians import jacobian, layer_jacobians
from fwdgrad.core.low_rank import LowRank
from fwdgrad.core.numerical import numerical_jacobian
from fwdgrad.core.tangents import Normal, Rademacher, Sphere, TangentDistribution
from fwdgrad.core.trees import combine, partition

__all__ = [
    "Explanation",
    "Factored",
    "LowRank",
    "Normal",
    "Pass",
    "Rademacher",
    "Sphere",
    "Split",
    "TangentDistribution",
    "at_weights",
    "backprop_value_and_grad",
    "combine",
    "explain",
    "forward_value_and_grad",
    "jacobian",
    "layer_jacobians",
    "numerical_jacobian",
    "partition",
    "pull_back",
    "push_forward",
]
