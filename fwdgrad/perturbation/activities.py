"""Perturbing what the layers compute, with other noise for every example.

The loss is a mean of the losses ℓ_n of N examples. Noise ξ_n is put in at each site z of example n
(`fwdgrad.perturbation.sites`), and pushed forward it gives the example's own directional derivative
d_n = Σ_z ⟨∂ℓ_n/∂z, ξ_n⟩. So d_n ξ_n is an unbiased estimate of ∂ℓ_n/∂z, and pulled back through the
line that made z of its weights, z = x W + b, the estimates for W and b are

    (1/N) Σ_n x_nᵀ (d_n ξ_n)        (1/N) Σ_n d_n ξ_n

Their variance goes with the number of units, not of weights. No derivative goes back through more
than that line and the activation or pooling after it.

Four things take more of the noise away. Where what follows is flat (a ReLU that is off) the
derivative is known to be zero, and no noise goes in; where it is narrower (pooling) noise goes in
there (`fwdgrad.perturbation.post_activation`). The noise of each site may be pushed forward for
itself, so that sites do not disturb each other (`layerwise`). And what follows the last layer is a
loss, whose derivative is at hand (`exact_last`). Of that, the derivatives of earlier layers may be
guessed
(`fwdgrad.perturbation.control_variates`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.control_variates import along, gradient_of_feedback
from fwdgrad.perturbation.loss import Loss
from fwdgrad.perturbation.minibatch import (
    check_own_losses,
    keys_of_each,
    noting_minibatches_of_one,
    number_of_examples,
    types_of_one,
)
from fwdgrad.perturbation.perturbed_loss import NoisyLoss, Pushed
from fwdgrad.perturbation.sites import program
from fwdgrad.perturbation.space import Estimate, Weigh
from fwdgrad.propagation.jaxprs import inlined
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.forms import gram, weighted_sum
from fwdgrad.tangents.independent import TangentDistribution
from fwdgrad.tangents.sampling import Tangents, sample_tangents
from fwdgrad.tangents.validation import check_drawn, check_guess
from fwdgrad.util import validation
from fwdgrad.util.trees import Array, PyTree, accumulation_dtype


@dataclass(frozen=True)
class Activities:
    """Tangents of what the layers compute, for every example its own.

    `fun` is as ever the mean loss over the examples of a minibatch, which all positional arguments
    after the parameters have as their first axis; keyword arguments are the same for all. It is
    evaluated for each example by itself, as a minibatch of one, and value and gradient are the mean
    of that, also of a `fun` that sums. So examples must not change each other's loss, as in batch
    normalisation, or with weights or masks that are normalised over the minibatch, and dropout
    takes an array of keys, one for each example, by position; `check_examples_independent` compares
    values to tell. Aux is stacked: an array that a
    minibatch of one has of shape s comes as (N, *s).

    The model may be of any library, and is not touched: noise goes in where the loss's jaxpr has a
    product, a convolution, a sum or a lookup with a parameter, or after the pooling of that. A
    parameter that is used in another way (Σ W², weights that are scanned over) gets noise itself,
    for that use, the same for all examples.

    Distributions sample the noise of an example, a list of arrays, one for each site.

    Args:
      layerwise: push the noise of each site forward for itself, so that the derivative along each
        is known alone. Takes as many tangents as there are sites, each from its site on.
      exact_last: at the last sites, from which no way to the loss leads through another parameter,
        take the derivative as it is: reverse mode through the loss alone (softmax minus one-hot).
        What is multiplied by what another parameter decides, also where `stop_gradient` stands
        before it, is not last. Elementwise products with fixed arrays count as the loss function.

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


class _OfExample(NamedTuple):
    """What the estimate is made of, of one example, or stacked of all.

    Attributes:
      outputs: of the loss, the loss first.
      cotangents: site -> the estimate of ∂ℓ/∂z, but for noise that is one for all examples.
      weights: for each group those of its tangents, (k,).
      clip_rate: the share of the derivatives that was clipped.
      errors: the exact derivatives that guesses are made of, flat.
      residuals: site -> what noise has found besides the guess.
    """

    outputs: list[Array]
    cotangents: dict[int, Array]
    weights: list[Array]
    clip_rate: Array
    errors: Array
    residuals: dict[int, Array]


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
        self._loss = NoisyLoss(
            inlined(program), len(self._leaves), space.layerwise, space.exact_last
        )
        sites = self._loss.sites
        self._own = [i for i in self._loss.noisy if sites[i].per_example]
        self._shared = [i for i in self._loss.noisy if not sites[i].per_example]
        if (record := current_record()) is not None:
            record.sites = self.describe()
        self._guess: dict[int, Array] = {}
        if guess is not None:
            check_guess(guess, jax.eval_shape(self.first_guess))
            self._guess = dict(zip(self._own, guess, strict=True))

    def first_guess(self) -> PyTree:
        """For each noisy site with noise of its own an array (exact derivatives, *its shape)."""
        sites = self._loss.sites
        number = sum(sites[i].variable.aval.size for i in self._exact)
        if not number:
            remedy = (
                "no last layer here has them of each example, see fwdgrad.explain"
                if self._space.exact_last
                else "say space=Activities(exact_last=True)"
            )
            raise ValueError(
                f"a guess at activities is made of the last layers' exact derivatives; {remedy}."
            )
        zeros = self._zeros(self._own)
        return [jnp.zeros((number, *z.shape), accumulation_dtype(z.dtype)) for z in zeros]

    def describe(self) -> list[tuple[str, tuple[int, ...], list[int], str]]:
        """Of each site its place, its shape, the indices of its parameters, and what it gets."""
        loss = self._loss
        inputs = {v: i for i, v in enumerate(loss.jaxpr.invars)}
        rows = []
        for i, site in enumerate(loss.sites):
            kind = "noise of each example's own" if site.per_example else "noise, one for all"
            if i in loss.exact:
                kind = "its exact derivative"
            parameters = sorted(inputs[v] for v in site.parameters)
            rows.append(
                (
                    site.place,
                    (loss.noisy[i].entry if i in loss.noisy else site.variable).aval.shape,
                    parameters,
                    kind,
                )
            )
        return rows

    @property
    def _exact(self) -> list[int]:
        """The sites whose exact derivatives feedback is made of."""
        return [i for i in self._loss.exact if self._loss.sites[i].per_example]

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        """Of each noisy site, those that have their own noise first, with an axis of examples."""
        with validation.error_note(
            "space=Activities() samples tangents for each example by jax.vmap."
        ):
            return self._draw(distribution, keys)

    def _draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        drawn: dict[int, Any] = {}
        for number, sites in enumerate(self._loss.groups):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            for_own, for_shared = jax.vmap(jax.random.split, out_axes=1)(folded)  # (K,) each
            if own := [i for i in sites if i in self._own]:
                of_examples = jax.vmap(partial(keys_of_each, self._examples))(for_own)
                sample = partial(sample_tangents, distribution, params=self._zeros(own))
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

    def estimate(self, tangents: Tangents, weigh: Weigh) -> Estimate:
        with noting_minibatches_of_one():
            return self._estimate(tangents, weigh)

    def _estimate(self, tangents: Tangents, weigh: Weigh) -> Estimate:
        loss = self._loss
        own, shared = tangents[: len(self._own)], tangents[len(self._own) :]
        of_shared = dict(zip(self._shared, shared, strict=True))
        varying = [v for v in loss.read if v in loss.varying]
        fixed = [v for v in loss.read if v not in loss.varying]

        def one(example: list[Array], own: list[Any]) -> tuple[_OfExample, list, list]:
            noise = {**dict(zip(self._own, own, strict=True)), **of_shared}
            pushed = loss.push(self._leaves, example, noise)
            read = [[pushed.values[v] for v in of] for of in (varying, fixed)]
            return self._of_example(pushed, weigh), read[0], read[1]

        each, of_varying, of_fixed = jax.vmap(one, out_axes=(0, 0, None))(self._examples, own)
        cotangents = each.cotangents
        for sites, weights in zip(loss.groups, each.weights, strict=True):
            for i in set(sites) & set(self._shared):
                cotangents[i] = weighted_sum(of_shared[i], weights.sum(0), weights.dtype)
        known = dict(zip(fixed, of_fixed, strict=True))
        grad = self._pull_back(cotangents, known, dict(zip(varying, of_varying, strict=True)))
        guess_grad = gradient_of_feedback(each.errors, each.residuals) if self._guess else []
        losses, *aux = each.outputs
        aux = self._flat.restore_aux(aux)
        return Estimate(losses.mean(), aux, grad, each.clip_rate.mean(), guess_grad)

    def _of_example(self, pushed: Pushed, weigh: Weigh) -> _OfExample:
        cotangents = dict(pushed.exact)
        errors, guesses = self._guesses(pushed)
        of_groups, clip_rates, residuals = [], [jnp.zeros(0, jnp.float32)], {}
        for sites, derivatives in zip(self._loss.groups, pushed.derivatives, strict=True):
            put_in = {i: pushed.noise[i] for i in sites}
            guessed = [i for i in sites if i in guesses]
            if guessed:
                known = along([put_in[i] for i in guessed], [guesses[i] for i in guessed])
                derivatives = derivatives.astype(known.dtype) - known
            size = self._size(sites, pushed.masks)
            products = partial(gram, [*put_in.values()], accumulation_dtype(derivatives.dtype))
            weights, clipped = weigh(derivatives, products, size)
            of_groups.append(weights)
            clip_rates.append(clipped[None] / len(self._loss.groups))
            for i in set(sites) & set(self._own):
                dtype = accumulation_dtype(weights.dtype)
                cotangents[i] = weighted_sum(put_in[i], weights, dtype)
                if i in guesses:
                    residuals[i] = cotangents[i]
                    cotangents[i] = cotangents[i] + guesses[i]
                if i in pushed.pull_back:
                    cotangents[i] = pushed.pull_back[i](cotangents[i])
        clip_rate = jnp.concatenate(clip_rates).sum()
        return _OfExample(pushed.outputs, cotangents, of_groups, clip_rate, errors, residuals)

    def _size(self, sites: list[int], masks: dict[int, Array]) -> Any:
        """How many entries of the sites' noise are put in, where that matters."""
        entries = [self._loss.noisy[i].entry.aval for i in sites]
        counts = [jnp.broadcast_to(masks[i], v.shape) for i, v in zip(sites, entries, strict=True)]
        return sum(jnp.sum(mask, dtype=jnp.float32) for mask in counts)

    def _guesses(self, pushed: Pushed) -> tuple[Array, dict[int, Array]]:
        """An example's exact derivatives e, and the guesses A e of the others, if there are any."""
        if not self._guess:
            return jnp.zeros(0), {}
        errors = jnp.concatenate([pushed.exact[i].ravel() for i in self._exact])
        return errors, {
            i: jnp.where(pushed.masks[i], jnp.tensordot(errors.astype(matrix.dtype), matrix, 1), 0)
            for i, matrix in self._guess.items()
        }

    def _pull_back(
        self, cotangents: dict[int, Array], fixed: dict[Any, Array], varying: dict[Any, Array]
    ) -> list[Array]:
        """From cotangents at sites to those of the parameters, each through its site's program."""
        loss = self._loss
        names = list(varying)

        def values_of_sites(leaves: list[Array]) -> list[Array]:
            values = []
            for i in cotangents:
                site = loss.sites[i]
                run = program(loss.jaxpr, site)

                def of_example(own: list[Array], run: Any = run) -> Array:
                    return run(leaves, {**fixed, **dict(zip(names, own, strict=True))})

                if site.per_example:
                    values.append(jax.vmap(of_example)(list(varying.values())))
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
