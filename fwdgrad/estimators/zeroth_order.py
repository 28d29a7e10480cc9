"""Estimators from values of the loss alone, with the call of the others, to compare with.

Both evaluate the loss at θ ± h v_k; what a forward gradient has exactly, ∇f·v, they have up to a
difference of values, so they need a step h and lose digits to it.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fwdgrad.estimators.mutations import make_mutations
from fwdgrad.estimators.value_and_grad import TangentEstimator, ValueAndGrad
from fwdgrad.perturbation.loss import Loss
from fwdgrad.propagation.pushforward import Pushforward
from fwdgrad.tangents.independent import Rademacher, TangentDistribution
from fwdgrad.tangents.low_rank import LowRank
from fwdgrad.util import validation
from fwdgrad.util.sharding import as_gradient, check_keys_per_device, varying_as
from fwdgrad.util.trees import Array, PyTree


@dataclass(frozen=True, eq=False)
class _FromValues(TangentEstimator):
    """g = (1/K) Σ_k w_k v_k with weights that are made of the losses at θ + h v_k and θ − h v_k."""

    step: float
    has_report: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "step", validation.checked_step(self.step))

    @abstractmethod
    def _weights(self, ahead: Array, behind: Array, step: Array) -> Array:
        """w (K,) of the losses at θ + h v_k (K,), at θ − h v_k (K,), and h."""

    def __call__(self, key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        validation.check_key(key)
        loss = Loss(self.fun, params, args, kwargs, has_aux=None)
        check_keys_per_device(key, loss.theta, loss.names)
        leaves = varying_as(loss.theta, key)
        splits = Pushforward(loss.trace(loss.at, leaves), leaves, loss.names).splits
        keys = jax.random.split(key, self.num_tangents)
        mutations = make_mutations(self.tangents, keys, leaves, loss.frame.subtree(leaves), splits)
        h = _moving(self.step, leaves)

        def value(mutation: list[Array], sign: Array) -> Array:
            both = zip(leaves, mutation, strict=True)
            moved = [x + (sign.astype(h.dtype) * h).astype(x.dtype) * v for x, v in both]
            return loss.at(moved)[0]

        ahead, behind = mutations.map_signed(value).T
        weights = self._weights(ahead, behind, h) / self.num_tangents
        grad = [
            as_gradient(g, x)
            for g, x in zip(mutations.weighted_sum(weights), loss.theta, strict=True)
        ]
        report: tuple[dict, ...] = ({},) if self.has_report else ()
        mean = (ahead.mean() + behind.mean()) / 2
        return mean, loss.gradient(grad), *report


class CentralDifferences(_FromValues):
    """Simultaneous perturbation; see `fwdgrad.spsa_value_and_grad` for the options."""

    def _weights(self, ahead: Array, behind: Array, step: Array) -> Array:
        return (ahead - behind) / (2 * step).astype(ahead.dtype)


class RankedMutants(_FromValues):
    """Evolution strategies; see `fwdgrad.evolution_value_and_grad` for the options."""

    def _weights(self, ahead: Array, behind: Array, step: Array) -> Array:
        del step
        losses = jnp.concatenate([ahead, behind])
        # Equal losses share the mean of their ranks: on a plateau there is no direction.
        ends = [jnp.searchsorted(jnp.sort(losses), losses, side=s) for s in ("left", "right")]
        ranks = (ends[0] + ends[1] - 1).astype(losses.dtype) / 2
        standing = ranks / (losses.size - 1) - 0.5
        return standing[: ahead.size] - standing[ahead.size :]


def _moving(step: float, leaves: Sequence[Array]) -> Array:
    """Return the step, or more: 4 spacings of the numbers near the largest parameter."""
    least = [jnp.asarray(step)]
    for x in leaves:
        largest = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0)
        least.append(4 * float(jnp.finfo(x.dtype).eps) * largest.astype(least[0].dtype))
    return jnp.stack(least).max()


def spsa_value_and_grad(
    fun: Callable[..., Any],
    *,
    tangents: TangentDistribution = Rademacher(),
    num_tangents: int = 1,
    step: float = 1e-3,
    has_report: bool = False,
) -> ValueAndGrad:
    """Simultaneous perturbation: g = (1/K) Σ_k (f(θ + h v_k) − f(θ − h v_k)) / 2h · v_k.

    E[g] = ∇f + O(h²), and rounding adds noise of the size ε |f| / h. Parameters are moved in their
    own dtype, where numbers near θ are up to ε |θ| apart (ε: `jnp.finfo(dtype).eps`), and a smaller
    step would move none. So h is `step`, but at least 4 ε |θ| of the largest finite parameter: with
    the default that is another number in half precision for |θ| above 0.26 (float16) or 0.03
    (bfloat16), and in float32 above 2,000. The loss needs more digits than the parameters: in half
    precision return it in float32.

    Memory: beside the parameters about two copies of them at most, whatever K. Each tangent is
    drawn again where it is added, unless all K are small or are drawn together. Of `Normal` and
    `Sphere` JAX's generator takes more on a CPU, where it keeps up to four arrays of a leaf's size:
    three to six copies.

    Args:
      fun: `fun(params, *args, **kwargs)` returns a real scalar loss.
      tangents, num_tangents: as in `forward_value_and_grad`; they are written out.
      step: h, which is more where that would not move the parameters, see above.
      has_report: if true, a third output follows, an empty dict.

    Returns:
      A function `(key, params, *args, **kwargs) -> (value, grad)`, where value is the mean of the
      losses at the perturbed parameters.

    Raises:
      TypeError, ValueError: as `forward_value_and_grad`; `step` is not positive.

    >>> value_and_grad = spsa_value_and_grad(lambda w: jnp.sum(w**2))
    >>> value_and_grad(jax.random.key(0), jnp.ones(3))[1].shape
    (3,)

    Source: Spall, Multivariate stochastic approximation using a simultaneous perturbation gradient
    approximation (1992).
    """
    return CentralDifferences(fun, tangents, num_tangents, step, has_report)


def evolution_value_and_grad(
    fun: Callable[..., Any],
    *,
    tangents: TangentDistribution = LowRank(factors="normal"),
    num_tangents: int = 8,
    step: float = 1e-2,
    has_report: bool = False,
) -> ValueAndGrad:
    """Evolution strategies: a population of 2K mutants θ ± h v_k, weighed by their standing.

    g = (1/K) Σ_k (r(θ + h v_k) − r(θ − h v_k)) v_k, with r the rank of a loss among the 2K, from −½
    to ½ (the mean rank of those that are equal): a direction of ascent whatever the scale of the
    loss, not an estimate of its gradient. Mutations of low rank are what makes large populations
    cheap.

    Args:
      fun, num_tangents, has_report: as in `spsa_value_and_grad`; num_tangents is K.
      tangents: the distribution of the mutations.
      step: h, as in `spsa_value_and_grad`.

    Returns:
      As `spsa_value_and_grad`.

    Raises:
      TypeError, ValueError: as `spsa_value_and_grad`.

    >>> value_and_grad = evolution_value_and_grad(lambda w: jnp.sum(w**2))
    >>> value_and_grad(jax.random.key(0), jnp.ones(3))[1].shape
    (3,)

    Source: Salimans et al., Evolution strategies as a scalable alternative to reinforcement
    learning (2017); Sarkar et al., Evolution strategies at the hyperscale (2025), for low rank.
    """
    return RankedMutants(fun, tangents, num_tangents, step, has_report)
