"""Floor 0, the core: tangents and gradient estimators on JAX alone.

Knows JAX and pytrees; never data sets, models, configuration or plots.
"""

from fwdgrad.core.estimators import backprop_value_and_grad, forward_value_and_grad
from fwdgrad.core.explanation import Explanation, explain
from fwdgrad.core.factored import Factored, Split
from fwdgrad.core.low_rank import LowRank
from fwdgrad.core.tangents import Normal, Rademacher, Sphere, TangentDistribution
from fwdgrad.core.trees import combine, partition

__all__ = [
    "Explanation",
    "Factored",
    "LowRank",
    "Normal",
    "Rademacher",
    "Sphere",
    "Split",
    "TangentDistribution",
    "backprop_value_and_grad",
    "combine",
    "explain",
    "forward_value_and_grad",
    "partition",
]
