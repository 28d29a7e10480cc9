"""The forward gradient as an object: options, tangents drawn ahead, first guess, estimate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.estimators.aggregation import Aggregation, Mean
from fwdgrad.estimators.chunks import keys_of_tangents, mean_over_tangents
from fwdgrad.estimators.value_and_grad import ValueAndGrad
from fwdgrad.perturbation.control_variates import Guided
from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.space import Estimate, Space
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents, check_tangents, samples_jointly
from fwdgrad.util import validation
from fwdgrad.util.sharding import as_gradient, check_keys_per_device, varying_as
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


class Drawn(NamedTuple):
    """Tangents drawn ahead by `ForwardGradient.draw`, to be given in the place of the key."""

    tangents: Tangents


@dataclass(frozen=True, eq=False)
class ForwardGradient(ValueAndGrad):
    """The estimate (1/K) Σ_k (∇f·v_k) v_k; see `fwdgrad.forward_value_and_grad` for the options."""

    tangents: TangentDistribution
    num_tangents: int
    space: Space
    aggregation: Aggregation
    chunk_size: int | None
    clip: float | None
    shrink: bool
    enter_custom_vjp: bool
    has_aux: bool
    has_report: bool

    def __post_init__(self) -> None:
        validation.check_callable(self.fun)
        check_tangents(self.tangents)
        validation.check_positive_integer("num_tangents", self.num_tangents)
        if self.chunk_size is not None:
            validation.check_positive_integer("chunk_size", self.chunk_size)
        object.__setattr__(self, "clip", validation.checked_clip(self.clip))
        validation.check_has("space", self.space, ["at"], "fwdgrad.Activities()")
        aggregation = self.aggregation
        validation.check_has(
            "aggregation", aggregation, ["coefficients", "needs_all"], "fwdgrad.Mean()"
        )
        if self.shrink:
            if not isinstance(aggregation, Mean):
                raise ValueError(
                    f"shrink=True is for the mean; {aggregation=!r} is as near as can be already."
                )
            validation.check_has(
                "tangents", self.tangents, ["relative_error"], "fwdgrad.Rademacher()"
            )
        if self._in_chunks and (samples_jointly(self.tangents) or aggregation.needs_all):
            needed = f"{aggregation=!r}"
            if samples_jointly(self.tangents):
                needed = f"tangents={self.tangents!r}"
            raise ValueError(
                f"chunk_size must be at least num_tangents={self.num_tangents}, or None: {needed} "
                f"needs all tangents at once; found {self.chunk_size}."
            )
        super().__post_init__()

    @property
    def _in_chunks(self) -> bool:
        return self.chunk_size is not None and self.chunk_size < self.num_tangents

    @property
    def draws_ahead(self) -> bool:  # type: ignore[override]
        return not self._in_chunks

    def draw(self, key: Array, params: PyTree, /, *args: Any, **kwargs: Any) -> Drawn:
        """Return the tangents of this key, to be given to the estimator in its place.

        Raises:
          ValueError: the tangents are drawn in chunks, so that not all are in memory.
        """
        if self._in_chunks:
            raise ValueError(
                f"with chunk_size={self.chunk_size} below num_tangents={self.num_tangents} no "
                "tangents are drawn ahead: give the key itself, or leave chunk_size out."
            )
        validation.check_key(key)
        loss, at = self._evaluation(params, args, kwargs, key)
        check_keys_per_device(key, loss.theta, loss.names)
        return Drawn(at.draw(self.tangents, keys_of_tangents(key, self.num_tangents)))

    def guide(self, params: PyTree, /, *args: Any, **kwargs: Any) -> Guided:
        """Return params with a first guess of the gradient, zero."""
        return Guided(params, self._evaluation(params, args, kwargs)[1].first_guess())

    def __call__(
        self, key: Array | Drawn, params: PyTree, /, *args: Any, **kwargs: Any
    ) -> tuple[Any, ...]:
        if not isinstance(key, Drawn):
            validation.check_key(key)
        loss, at = self._evaluation(params, args, kwargs, key)
        if isinstance(key, Drawn):
            keys = keys_of_tangents(jax.random.key(0), self.num_tangents)
            expected = jax.eval_shape(lambda: at.draw(self.tangents, keys))
            at.check_drawn(key.tangents, expected)
            total = at.estimate(key.tangents, self._weigh)
        else:
            check_keys_per_device(key, loss.theta, loss.names)

            def estimate(keys: Array) -> Estimate:
                return at.estimate(at.draw(self.tangents, keys), self._weigh)

            keys = keys_of_tangents(key, self.num_tangents)
            total = mean_over_tangents(estimate, keys, self.chunk_size)
        grad = [as_gradient(g, x) for g, x in zip(total.grad, loss.theta, strict=True)]
        value = (total.value, total.aux) if self.has_aux else total.value
        report = ({"clip_rate": total.clip_rate},) if self.has_report else ()
        gradient = loss.gradient(grad)
        if isinstance(params, Guided):
            leaves, structure = jax.tree.flatten(params.guess)
            parts = zip(total.guess_grad, leaves, strict=True)
            of_guess = jax.tree.unflatten(
                structure, [as_gradient(g, x, jax.lax.pmean) for g, x in parts]
            )
            gradient = Guided(gradient, of_guess)
        return value, gradient, *report

    def _evaluation(
        self, params: PyTree, args: tuple[Any, ...], kwargs: dict[str, Any], like: PyTree = None
    ) -> Any:
        """The loss, and its evaluation along tangents that differ by device where `like` does."""
        params, guess = params if isinstance(params, Guided) else (params, None)
        loss = Loss(self.fun, params, args, kwargs, self.has_aux, self.enter_custom_vjp)
        theta, guess = varying_as((loss.theta, guess), like)
        return loss, self.space.at(loss.replace(theta), guess)

    def _weigh(
        self, derivatives: Array, gram: Callable[[], Array], size: Any
    ) -> tuple[Array, Array]:
        derivatives = derivatives.astype(accumulation_dtype(derivatives.dtype))
        clip_rate = jnp.zeros((), jnp.float32)
        if self.clip is not None:
            clip_rate = jnp.mean(jnp.abs(derivatives) > self.clip, dtype=jnp.float32)
            derivatives = jnp.clip(derivatives, -self.clip, self.clip)
        weights = self.aggregation.coefficients(derivatives, gram)
        if self.shrink:
            # The error of the mean over all K tangents, also where they go in chunks.
            error = self.tangents.relative_error(size, self.num_tangents)  # type: ignore[attr-defined]
            error = jnp.asarray(error, weights.dtype)
            weights = weights / (1 + jnp.maximum(error, 0))  # size may be 0: all units are off
        return weights, clip_rate
