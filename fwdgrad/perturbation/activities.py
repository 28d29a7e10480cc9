"""Activity perturbation (Ren et al. 2023): independent noise for each example.

The loss is a mean of the losses ℓ_n of N examples. Noise ξ_n enters at each site z of example n
(`fwdgrad.perturbation.sites`), a pre-activation. Pushed forward it gives the example's own
directional derivative d_n = Σ_z ⟨∂ℓ_n/∂z, ξ_n⟩. So d_n ξ_n is an unbiased estimate of ∂ℓ_n/∂z.
Pulled back through the one linear operation z = x W + b it is an estimate for W and b:

    (1/N) Σ_n x_nᵀ (d_n ξ_n)        (1/N) Σ_n d_n ξ_n

The variance grows with the number of units, not of weights. Reverse mode goes no further than
through that operation and the activation or pooling after it.

The variance is lowered further by `layerwise`, by `exact_last`, where a post-activation is flat or
narrows (`fwdgrad.perturbation.post_activation`), and by a guess of the derivatives
(`fwdgrad.perturbation.control_variates`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.control_variates import feedback, gradient_of_feedback, inner_products
from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.minibatch import (
    check_own_losses,
    keys_of_each,
    noting_minibatches_of_one,
    number_of_examples,
    types_of_one,
)
from fwdgrad.perturbation.perturbed_loss import NoisyLoss, Pushed
from fwdgrad.perturbation.sites import layer_of_site
from fwdgrad.perturbation.space import Derivatives, Estimate, PushedForward
from fwdgrad.propagation.jaxprs import inlined
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.forms import gram, weighted_sum
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents, check_drawn, check_guess, sample_tangents
from fwdgrad.util import validation
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


@dataclass(frozen=True)
class Activities:
    """Activity perturbation: noise at pre-activations, independent for each example.

    `fun` is the mean loss over a minibatch. All positional arguments after the parameters have the
    examples as their first axis; keyword arguments are the same for all. `fun` is evaluated for
    each example by itself, as a minibatch of one, and value and gradient are the mean over these,
    also of a `fun` that sums. So examples must not change each other's loss: no batch
    normalisation, no weights or masks normalised over the minibatch, and for dropout an array of
    keys, one for each example, by position. `check_examples_independent` compares values to find
    out. Aux is stacked: an array that has shape s for a minibatch of one comes as (N, *s).

    The model may be of any library and is not changed. Noise enters where the loss's jaxpr has a
    product, a convolution, a sum or a lookup with a parameter, or after the pooling that follows. A
    parameter that is used in another way (Σ W², weights that are scanned over) gets noise itself
    for that use, the same for all examples.

    Distributions sample the noise of an example, a list of arrays, one for each site.

    Args:
      layerwise: push the noise of each site forward separately, so that the derivative along it is
        known alone. The cost is K tangents for each site, from that site on, so it grows with the
        square of the number of sites.
      exact_last: take the exact derivative at the last sites, from which no way to the loss leads
        through another parameter: reverse mode through the loss function alone (softmax minus
        one-hot). A value is not last if it meets a value of another parameter in a product, even
        behind `stop_gradient`. Elementwise products with fixed arrays count as the loss function.

    >>> import fwdgrad
    >>> def loss(params, x, y):
    ...     return jnp.mean((jnp.tanh(x @ params["w"]) @ params["u"] - y) ** 2)
    >>> value_and_grad = fwdgrad.forward_value_and_grad(loss, space=Activities(layerwise=True))
    >>> params = {"w": jnp.ones((3, 4)), "u": jnp.ones(4)}
    >>> value, grad = value_and_grad(jax.random.key(0), params, jnp.ones((5, 3)), jnp.zeros(5))
    >>> value.shape, grad["w"].shape
    ((), (3, 4))

    Source: Ren, Kornblith, Liao, Hinton, Scaling forward gradient with local losses (2023).
    """

    layerwise: bool = False
    exact_last: bool = False

    def at(self, loss: Loss, guess: PyTree = None) -> "_AtActivities":
        return _AtActivities(self, loss, guess)


class _Example(NamedTuple):
    """An example, pushed forward; or all examples, each array with an axis of them in front.

    Attributes:
      outputs: of the loss, the loss first.
      derivatives: one entry for each group of sites.
      noise: site -> its tangents as they entered, of sites with noise of each example's own.
      exact: site -> ∂ℓ/∂z, of sites whose derivative is exact.
      errors: the exact derivatives that guesses are made of, flat; none without a guess.
      guesses: site -> the guess of the derivative where its noise enters.
      varying: the values that sites are pulled back with, of those that differ by example.
    """

    outputs: list[Array]
    derivatives: list[Derivatives]
    noise: dict[int, Any]
    exact: dict[int, Array]
    errors: Array
    guesses: dict[int, Array]
    varying: list[Array]


class _AtActivities:
    def __init__(self, space: Activities, loss: Loss, guess: PyTree):
        self._space = space
        self._number = number_of_examples(loss.args, loss.kwargs)
        self._leaves = loss.theta
        examples, structure_of_args = jax.tree.flatten(loss.args)
        self._examples = [jnp.asarray(x)[:, None] for x in examples]  # minibatches of one

        def of_example(leaves: Sequence[Array], example: Sequence[Array]) -> tuple[Array, PyTree]:
            args = jax.tree.unflatten(structure_of_args, example)
            return loss.of(leaves, args)

        with noting_minibatches_of_one():
            one = types_of_one(self._examples)
            traced = loss.trace(of_example, self._leaves, one)
            program = traced.required(needed_by="space=Activities()")
        check_own_losses(one, program.outvars[0].aval)
        self._flat = traced.flat
        program, number = inlined(program), len(self._leaves)
        self._loss = NoisyLoss(program, number, space.layerwise, space.exact_last)
        sites = self._loss.sites
        self._own = [i for i in self._loss.noisy if sites[i].per_example]
        self._shared = [i for i in self._loss.noisy if not sites[i].per_example]
        read = self._loss.read
        self._varying = [v for v in read if v in self._loss.varying]
        self._fixed = [v for v in read if v not in self._loss.varying]
        if (record := current_record()) is not None:
            record.sites = self._loss.describe()
        self._guess: dict[int, Array] = {}
        if guess is not None:
            check_guess(guess, jax.eval_shape(self.first_guess))
            self._guess = dict(zip(self._own, guess, strict=True))

    def first_guess(self) -> PyTree:
        """Return zeros (exact derivatives, *shape) for each site with its own noise by example."""
        number = sum(self._loss.sites[i].variable.aval.size for i in self._exact)
        if not number:
            remedy = "say space=Activities(exact_last=True)"
            if self._space.exact_last:
                remedy = "no last layer here has them of each example, see fwdgrad.explain"
            raise ValueError(
                f"a guess at activities is made of the last layers' exact derivatives; {remedy}."
            )
        zeros = self._zeros(self._own)
        return [jnp.zeros((number, *z.shape), accumulation_dtype(z.dtype)) for z in zeros]

    @property
    def _exact(self) -> list[int]:
        """The sites whose exact derivatives feedback reads."""
        return [i for i in self._loss.exact if self._loss.sites[i].per_example]

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        """Return the noise of each site: first sites with an axis of examples, then shared ones."""
        drawn: dict[int, Any] = {}
        for number, sites in enumerate(self._loss.groups):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            for_own, for_shared = jax.vmap(jax.random.split, out_axes=1)(folded)  # (K,) each
            if own := [i for i in sites if i in self._own]:
                of_examples = jax.vmap(partial(keys_of_each, self._examples))(for_own)
                sample = partial(sample_tangents, distribution, params=self._zeros(own))
                note = "space=Activities() samples tangents for each example by jax.vmap."
                with validation.error_note(note):
                    drawn.update(zip(own, jax.vmap(sample, in_axes=1)(of_examples), strict=True))
            if shared := [i for i in sites if i in self._shared]:
                noise = sample_tangents(distribution, for_shared, self._zeros(shared))
                drawn.update(zip(shared, noise, strict=True))
        return [drawn[i] for i in (*self._own, *self._shared)]

    def _zeros(self, sites: Sequence[int]) -> list[Array]:
        values = [self._loss.noisy[i].entry.aval for i in sites]
        return [jnp.zeros(v.shape, v.dtype) for v in values]

    def check_drawn(self, found: Sequence[Any], expected: Sequence[Any]) -> None:
        sites = [self._loss.sites[i] for i in (*self._own, *self._shared)]
        check_drawn(found, expected, [f"the value at {site.place}" for site in sites])

    def push(self, tangents: Tangents, with_gram: bool) -> PushedForward:
        own, shared = tangents[: len(self._own)], tangents[len(self._own) :]
        shared_noise = dict(zip(self._shared, shared, strict=True))

        def of_example(example: list[Array], own: list[Any]) -> tuple[_Example, list[Array]]:
            noise = {**dict(zip(self._own, own, strict=True)), **shared_noise}
            pushed = self._loss.push(self._leaves, example, noise)
            own_noise = {i: pushed.noise[i] for i in self._own}
            errors, guesses = self._guesses(pushed)
            derivatives = self._derivatives(pushed, guesses, with_gram)
            varying, fixed = ([pushed.values[v] for v in x] for x in (self._varying, self._fixed))
            found = pushed.outputs, derivatives, own_noise, pushed.exact, errors, guesses, varying
            return _Example(*found), fixed

        with noting_minibatches_of_one():
            each, fixed = jax.vmap(of_example, out_axes=(0, None))(self._examples, own)
        value, aux = each.outputs[0].mean(), self._flat.restore_aux(each.outputs[1:])
        residuals = each, dict(zip(self._fixed, fixed, strict=True)), shared_noise
        return PushedForward(value, aux, each.derivatives, residuals)

    def _guesses(self, pushed: Pushed) -> tuple[Array, dict[int, Array]]:
        """Return an example's exact derivatives e, and the guesses A e of the other derivatives."""
        if not self._guess:
            return jnp.zeros(0), {}
        errors = jnp.concatenate([pushed.exact[i].ravel() for i in self._exact])
        return errors, {i: feedback(errors, a, pushed.masks[i]) for i, a in self._guess.items()}

    def _derivatives(
        self, pushed: Pushed, guesses: dict[int, Array], with_gram: bool
    ) -> list[Derivatives]:
        """Return an example's derivatives along the noise of each group, without guessed parts."""
        found = []
        for sites, along in zip(self._loss.groups, pushed.derivatives, strict=True):
            if guessed := [i for i in sites if i in guesses]:
                noise = [pushed.noise[i] for i in guessed]
                known = inner_products(noise, [guesses[i] for i in guessed])
                along = along.astype(known.dtype) - known
            noise = [pushed.noise[i] for i in sites]
            products = gram(noise, accumulation_dtype(along.dtype)) if with_gram else None
            shapes = {i: self._loss.noisy[i].entry.aval.shape for i in sites}
            masks = [jnp.broadcast_to(pushed.masks[i], shape) for i, shape in shapes.items()]
            num_entries = sum(jnp.sum(mask, dtype=jnp.float32) for mask in masks)
            found.append(Derivatives(along, products, num_entries))
        return found

    def combine(self, pushed: PushedForward, weights: Sequence[Array]) -> Estimate:
        each, fixed, shared_noise = pushed.residuals
        with noting_minibatches_of_one():
            combined = jax.vmap(partial(self._combined, fixed))
            own, residuals = combined(each, list(weights))
        cotangents = dict(sorted({**each.exact, **own}.items()))
        for sites, of_group in zip(self._loss.groups, weights, strict=True):
            for i in [i for i in sites if i in shared_noise]:
                cotangents[i] = weighted_sum(shared_noise[i], of_group.sum(0), of_group.dtype)
        with noting_minibatches_of_one():
            grad = self._pull_back(cotangents, fixed, each.varying)
        return Estimate(grad, gradient_of_feedback(each.errors, residuals) if self._guess else [])

    def _combined(
        self, fixed: dict[Any, Array], example: _Example, weights: list[Array]
    ) -> tuple[dict[int, Array], dict[int, Array]]:
        """Return an example's estimates of ∂ℓ/∂z by site, and their parts besides the guess."""
        values = self._values(fixed, example.varying)
        cotangents, residuals = {}, {}
        for sites, of_group in zip(self._loss.groups, weights, strict=True):
            for i in [i for i in sites if i in example.noise]:
                found = weighted_sum(example.noise[i], of_group, accumulation_dtype(of_group.dtype))
                if i in example.guesses:
                    residuals[i] = found
                    found = found + example.guesses[i]
                if (after := self._loss.noisy[i].post_activation) is not None:
                    found = after.pull_back(values)(found)
                cotangents[i] = found
        return cotangents, residuals

    def _values(self, fixed: dict[Any, Array], varying: list[Array]) -> dict[Any, Array]:
        """Return the values that sites of an example are pulled back with, by variable."""
        return fixed | dict(zip(self._varying, varying, strict=True))

    def _pull_back(
        self, cotangents: dict[int, Array], fixed: dict[Any, Array], varying: list[Array]
    ) -> list[Array]:
        """Pull cotangents at sites back to the parameters, each through its site's layer."""
        loss = self._loss

        def values_of_sites(leaves: list[Array]) -> list[Array]:
            values = []
            for i in cotangents:
                site = loss.sites[i]
                run = layer_of_site(loss.program, site)

                def of_example(varying: list[Array], run: Any = run) -> Array:
                    return run(leaves, self._values(fixed, varying))

                if site.per_example:
                    values.append(jax.vmap(of_example)(varying))
                else:
                    values.append(run(leaves, fixed))
            return values

        values, pull_back = jax.vjp(values_of_sites, self._leaves)
        scaled = []
        for i, value in zip(cotangents, values, strict=True):
            cotangent = cotangents[i] / self._number
            if i in loss.exact and not loss.sites[i].per_example:
                cotangent = cotangent.sum(0)  # each example has its own derivative by it
            scaled.append(cotangent.astype(value.dtype))
        (grad,) = pull_back(scaled)
        return [g.astype(accumulation_dtype(g.dtype)) for g in grad]
