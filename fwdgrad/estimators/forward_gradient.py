"""The forward gradient as a callable object: tangents, derivatives, weights, estimate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.estimators.aggregation import Aggregation, Mean
from fwdgrad.estimators.value_and_grad import TangentEstimator, method_of_fun
from fwdgrad.perturbation.control_variates import Guided
from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.space import Derivatives, Estimate, Evaluation, Space
from fwdgrad.tangents.sampling import Tangents, samples_jointly
from fwdgrad.util import validation
from fwdgrad.util.programs import scan
from fwdgrad.util.sharding import as_gradient, check_keys_per_device, varying_as
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


class Drawn(NamedTuple):
    """Tangents that `draw` of an estimator has sampled ahead, for its `along`."""

    tangents: Tangents


class _ChunkMean(NamedTuple):
    """The estimate and the fraction of clipped derivatives, each a mean over some tangents."""

    estimate: Estimate
    clip_rate: Array


@dataclass(frozen=True, eq=False)
class ForwardGradient(TangentEstimator):
    """The estimate (1/K) Σ_k (∇f·v_k) v_k; see `fwdgrad.forward_value_and_grad` for the options."""

    space: Space
    aggregation: Aggregation
    chunk_size: int | None
    clip: float | None
    shrink: bool
    enter_custom_vjp: bool
    has_aux: bool
    has_report: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk_size is not None:
            validation.check_positive_integer("chunk_size", self.chunk_size)
        object.__setattr__(self, "clip", validation.checked_clip(self.clip))
        validation.check_has("space", self.space, ["at"], "fwdgrad.Activities()")
        needed = ["coefficients", "needs_gram"]
        validation.check_has("aggregation", self.aggregation, needed, "fwdgrad.Mean()")
        if self.shrink:
            if not isinstance(self.aggregation, Mean):
                raise ValueError(
                    "shrink=True is for the mean; found "
                    f"aggregation={self.aggregation!r}, which is as near as can be already."
                )
            needed = ["relative_error"]
            validation.check_has("tangents", self.tangents, needed, "fwdgrad.Rademacher()")
        if self.draws_ahead:
            return
        for option, goes_jointly in [
            (f"tangents={self.tangents!r}", samples_jointly(self.tangents)),
            (f"aggregation={self.aggregation!r}", self.aggregation.needs_gram),
        ]:
            if goes_jointly:
                raise ValueError(
                    f"chunk_size must be at least num_tangents={self.num_tangents}, or None: "
                    f"{option} needs all tangents at once; found {self.chunk_size}."
                )

    @property
    def draws_ahead(self) -> bool:  # type: ignore[override]
        return self.chunk_size is None or self.chunk_size >= self.num_tangents

    def guided(self) -> "GuidedGradient":
        """Return the estimator of the same options with a guess of the gradient in its params."""
        return GuidedGradient(**self._options)

    def __call__(self, key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        loss, guess, evaluation, keys = self._at_key(key, params, args, kwargs)

        def of_chunk(keys: Array) -> tuple[tuple[Array, PyTree], _ChunkMean]:
            return self._estimate(evaluation, evaluation.draw(self.tangents, keys))

        return self._outputs(loss, guess, *_mean_over_chunks(of_chunk, keys, self.chunk_size))

    @method_of_fun
    def draw(self, key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> Drawn:
        """Return the tangents of this key, to be given to `along`.

        Raises:
          ValueError: the tangents go in chunks, so that not all are in memory.
        """
        if not self.draws_ahead:
            raise ValueError(
                f"with chunk_size={self.chunk_size} below num_tangents={self.num_tangents} no "
                "tangents are drawn ahead: give the key itself, or leave chunk_size out."
            )
        _, _, evaluation, keys = self._at_key(key, params, args, kwargs)
        return Drawn(evaluation.draw(self.tangents, keys))

    @method_of_fun
    def along(self, drawn: Drawn, params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs of the call, with these tangents in the place of a key."""
        if not isinstance(drawn, Drawn):
            raise TypeError(
                "drawn must be the tangents that value_and_grad.draw(key, params, ...) returns; "
                f"found {type(drawn).__name__}. With a key call value_and_grad itself."
            )
        loss, guess, evaluation = self._evaluation(params, args, kwargs, drawn)
        keys = _keys_of_tangents(jax.random.key(0), self.num_tangents)
        evaluation.check_drawn(
            drawn.tangents, jax.eval_shape(lambda: evaluation.draw(self.tangents, keys))
        )
        return self._outputs(loss, guess, *self._estimate(evaluation, drawn.tangents))

    def _params_and_guess(self, params: PyTree) -> tuple[PyTree, PyTree]:
        return params, None

    def _evaluation(
        self, params: PyTree, args: tuple[Any, ...], kwargs: dict[str, Any], like: PyTree
    ) -> tuple[Loss, PyTree, Evaluation]:
        """Return the loss, the guess, and their evaluation along tangents.

        The tangents differ by device where `like` does.
        """
        params, guess = self._params_and_guess(params)
        loss = Loss(self.fun, params, args, kwargs, self.has_aux, self.enter_custom_vjp)
        theta, varying_guess = varying_as((loss.theta, guess), like)
        return loss, guess, self.space.at(loss.replace(theta), varying_guess)

    def _at_key(
        self, key: Array, params: PyTree, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Loss, PyTree, Evaluation, Array]:
        """Return the evaluation at a key, with a key for each tangent."""
        if isinstance(key, Drawn):
            raise TypeError(
                "key must be a typed PRNG key; found a Drawn, tangents drawn ahead. Give them to "
                "value_and_grad.along(drawn, params, ...)."
            )
        validation.check_key(key)
        loss, guess, evaluation = self._evaluation(params, args, kwargs, key)
        check_keys_per_device(key, loss.theta, loss.names)
        return loss, guess, evaluation, _keys_of_tangents(key, self.num_tangents)

    def _estimate(
        self, evaluation: Evaluation, tangents: Tangents
    ) -> tuple[tuple[Array, PyTree], _ChunkMean]:
        """Return (loss, aux), and the estimate by these tangents."""
        pushed = evaluation.push(tangents, self.aggregation.needs_gram)
        weights, clip_rates = [], []
        for derivatives in pushed.derivatives:
            weigh = self._weights
            for _ in range(derivatives.along.ndim - 1):  # over examples
                weigh = jax.vmap(weigh)
            of_group, clip_rate = weigh(derivatives)
            weights.append(of_group)
            clip_rates.append(clip_rate)
        estimate = evaluation.combine(pushed, weights)
        clip_rate = jnp.stack(clip_rates).mean() if clip_rates else jnp.zeros((), jnp.float32)
        return (pushed.value, pushed.aux), _ChunkMean(estimate, clip_rate)

    def _weights(self, derivatives: Derivatives) -> tuple[Array, Array]:
        """Return the weights (K,) of a group of tangents, and the fraction that is clipped."""
        along = derivatives.along.astype(accumulation_dtype(derivatives.along.dtype))
        clip_rate = jnp.zeros((), jnp.float32)
        if self.clip is not None:
            clip_rate = jnp.mean(jnp.abs(along) > self.clip, dtype=jnp.float32)
            along = jnp.clip(along, -self.clip, self.clip)
        weights = self.aggregation.coefficients(along, derivatives.gram)
        if self.shrink:
            # The error of the mean over all K tangents, also where they go in chunks.
            size: Any = derivatives.num_entries
            error = self.tangents.relative_error(size, self.num_tangents)  # type: ignore[attr-defined]
            error = jnp.asarray(error, weights.dtype)
            weights = weights / (1 + jnp.maximum(error, 0))  # size may be 0: all units are off
        return weights, clip_rate

    def _outputs(
        self, loss: Loss, guess: PyTree, value_and_aux: tuple[Array, PyTree], mean: _ChunkMean
    ) -> tuple[Any, ...]:
        grads = zip(mean.estimate.grad, loss.theta, strict=True)
        grad = loss.gradient([as_gradient(g, x) for g, x in grads])
        if guess is not None:
            leaves, structure = jax.tree.flatten(guess)
            grads = zip(mean.estimate.guess_grad, leaves, strict=True)
            of_guess = [as_gradient(g, x, jax.lax.pmean) for g, x in grads]
            grad = Guided(grad, jax.tree.unflatten(structure, of_guess))
        value = value_and_aux if self.has_aux else value_and_aux[0]
        return value, grad, *(({"clip_rate": mean.clip_rate},) if self.has_report else ())


class GuidedGradient(ForwardGradient):
    """The forward gradient with a guess of the gradient beside the parameters, a control variate.

    Its params are a `fwdgrad.Guided`, parameters and guess, and so is the gradient. `init` returns
    the first one.
    """

    @method_of_fun
    def init(self, params: PyTree, /, *args: Any, **kwargs: Any) -> Guided:
        """Return the parameters with a first guess, zero."""
        loss = Loss(self.fun, params, args, kwargs, self.has_aux, self.enter_custom_vjp)
        return Guided(params, self.space.at(loss).first_guess())

    def params_of(self, state: Guided, /) -> PyTree:
        return state.params

    def _params_and_guess(self, params: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(params, Guided):
            raise TypeError(
                "params must be a Guided, parameters and a guess of their gradient, as "
                f"value_and_grad.init(params, ...) returns; found {type(params).__name__}."
            )
        return params


def _keys_of_tangents(key: Array, num_tangents: int) -> Array:
    """Return a key for each tangent; of one, the key itself."""
    return key[None] if num_tangents == 1 else jax.random.split(key, num_tangents)


def _mean_over_chunks(
    of_chunk: Callable[[Array], tuple[PyTree, _ChunkMean]], keys: Array, chunk_size: int | None
) -> tuple[PyTree, _ChunkMean]:
    """Return the outputs of `of_chunk`: the first of one chunk, the second averaged over all keys.

    The tangents of a chunk go through the loss together, with the primal evaluated once.
    (`jax.linearize` would evaluate it once for all chunks, but only by keeping every intermediate
    value, as reverse mode does.)
    """
    # The remainder, or else the first whole chunk, comes first and gives value and aux; then
    # all that is left are whole chunks, for one scan.
    number = len(keys)
    chunk = min(chunk_size or number, number)
    head = number % chunk or chunk
    outputs, mean = of_chunk(keys[:head])
    if head == number:
        return outputs, mean

    def part(mean: _ChunkMean, keys: Array) -> _ChunkMean:
        share = len(keys) / number
        return jax.tree.map(lambda x: share * x, mean)

    def add_chunk(sums: _ChunkMean, keys: Array) -> tuple[_ChunkMean, None]:
        return jax.tree.map(jnp.add, sums, part(of_chunk(keys)[1], keys)), None

    sums, _ = scan(add_chunk, part(mean, keys[:head]), keys[head:].reshape(-1, chunk))
    return outputs, sums
