"""The evaluation of activity perturbation: noise, derivatives, guesses, the way back."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fwdgrad.perturbation.chained_feedback import Chained
from fwdgrad.perturbation.control_variates import inner_products
from fwdgrad.perturbation.feedback import Feedback, FromError, Learned, random_like
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

FeedbackUse = Literal["corrected", "alone", "fixed"]


class _Example(NamedTuple):
    """An example, pushed forward; or all examples, each array with an axis of them in front.

    Attributes:
      outputs: of the loss, the loss first.
      derivatives: one entry for each group of sites.
      noise: site -> its tangents as they entered, of sites with noise of each example's own.
      exact: site -> ∂ℓ/∂z, of sites whose derivative is exact.
      guesses: site -> the guess of the derivative where its noise enters.
      varying: the values that sites are pulled back with, of those that differ by example.
    """

    outputs: list[Array]
    derivatives: list[Derivatives]
    noise: dict[int, Any]
    exact: dict[int, Array]
    guesses: dict[int, Array]
    varying: list[Array]


class AtActivities:
    """The evaluation of a loss with noise at its pre-activations; options as of `Activities`."""

    def __init__(
        self,
        loss: Loss,
        guess: PyTree,
        *,
        layerwise: bool,
        exact_last: bool,
        at_kernels: bool,
        feedback: FeedbackUse,
        chained: bool,
    ):
        self._exact_last, self._use, self._chained = exact_last, feedback, chained
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
        self._loss = NoisyLoss(
            program,
            number,
            layerwise=layerwise,
            exact_last=exact_last,
            at_kernels=at_kernels,
            chained=chained,
        )
        sites = self._loss.sites
        self._own = [i for i in self._loss.noisy if sites[i].own_noise]
        self._shared = [i for i in self._loss.noisy if not sites[i].own_noise]
        is_fixed = feedback == "fixed"
        if is_fixed and self._shared:
            raise ValueError(
                f"feedback='fixed' gives no derivative by the value at "
                f"{sites[self._shared[0]].place}, which is the same for all examples; say "
                "feedback='alone'."
            )
        self._groups = [] if is_fixed else self._loss.groups
        self._drawn = [] if is_fixed else [*self._own, *self._shared]
        read = self._loss.read
        self._varying = [v for v in read if v in self._loss.varying]
        self._fixed = [v for v in read if v not in self._loss.varying]
        if (record := current_record()) is not None:
            record.sites = self._loss.describe()
        self._guess: Sequence[Array] | None = guess
        if guess is not None:
            check_guess(guess, jax.eval_shape(self.first_guess))

    def first_guess(self) -> PyTree:
        """Return the first arrays of the feedback: zeros, or random ones if it is fixed."""
        if not any(self._loss.sites[i].variable.aval.size for i in self._exact):
            remedy = "say space=Activities(exact_last=True)"
            if self._exact_last:
                remedy = "no last layer here has them of each example, see fwdgrad.explain"
            raise ValueError(
                f"a guess at activities is made of the last layers' exact derivatives; {remedy}."
            )
        zeros = self._feedback.first()
        if self._use == "fixed":
            return random_like(self._leaves, zeros, self._feedback.fan_in())
        return zeros

    @cached_property
    def _feedback(self) -> Feedback:
        if self._chained:
            return Chained(self._loss, self._leaves)
        return FromError(self._loss, self._own, self._exact)

    @property
    def _exact(self) -> list[int]:
        """The sites whose exact derivatives feedback reads."""
        return [i for i in self._loss.exact if self._loss.sites[i].per_example]

    def draw(self, distribution: TangentDistribution, keys: Array) -> Tangents:
        """Return the noise of each site: first sites with an axis of examples, then shared ones."""
        drawn: dict[int, Any] = {}
        for number, sites in enumerate(self._groups):
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
        return [drawn[i] for i in self._drawn]

    def _zeros(self, sites: Sequence[int]) -> list[Array]:
        values = [self._loss.noisy[i].entry.aval for i in sites]
        return [jnp.zeros(v.shape, v.dtype) for v in values]

    def check_drawn(self, found: Sequence[Any], expected: Sequence[Any]) -> None:
        sites = [self._loss.sites[i] for i in self._drawn]
        check_drawn(found, expected, [f"the value at {site.place}" for site in sites])

    def push(self, tangents: Tangents, with_gram: bool) -> PushedForward:
        if self._use != "corrected" and self._guess is None:
            raise ValueError(
                f"feedback={self._use!r} needs a guess; call value_and_grad.guided(), "
                "or leave feedback out."
            )
        drawn = dict(zip(self._drawn, tangents, strict=True))
        shared_noise = {i: noise for i, noise in drawn.items() if i in self._shared}
        own = {i: noise for i, noise in drawn.items() if i in self._own}

        def of_example(example: list[Array], own: dict[int, Any]) -> tuple[_Example, list[Array]]:
            noise = {**own, **shared_noise}
            pushed = self._loss.push(self._leaves, example, noise, self._number)
            own_noise = {i: pushed.noise[i] for i in own}
            guesses = self._guesses(pushed)
            derivatives = self._derivatives(pushed, guesses, with_gram)
            varying, fixed = ([pushed.values[v] for v in x] for x in (self._varying, self._fixed))
            found = pushed.outputs, derivatives, own_noise, pushed.exact, guesses, varying
            return _Example(*found), fixed

        with noting_minibatches_of_one():
            each, fixed = jax.vmap(of_example, out_axes=(0, None))(self._examples, own)
        value, aux = each.outputs[0].mean(), self._flat.restore_aux(each.outputs[1:])
        residuals = each, dict(zip(self._fixed, fixed, strict=True)), shared_noise
        return PushedForward(value, aux, each.derivatives, residuals)

    def _guesses(self, pushed: Pushed) -> dict[int, Array]:
        """Return the guesses of an example's derivatives, by site; none without a guess."""
        if self._guess is None:
            return {}
        exact = {i: pushed.exact[i] for i in self._exact}
        return self._feedback.guesses(self._guess, exact, pushed.masks, pushed.values)

    def _derivatives(
        self, pushed: Pushed, guesses: dict[int, Array], with_gram: bool
    ) -> list[Derivatives]:
        """Return an example's derivatives along the noise of each group, without guessed parts."""
        found = []
        for number, sites in enumerate(self._groups):
            along = pushed.derivatives[number]
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
        for sites, of_group in zip(self._groups, weights, strict=True):
            for i in [i for i in sites if i in shared_noise]:
                cotangents[i] = weighted_sum(shared_noise[i], of_group.sum(0), of_group.dtype)
        with noting_minibatches_of_one():
            grad = self._pull_back(cotangents, fixed, each.varying)
        of_guess: list[Array] = []
        if self._guess is not None:
            exact = {i: each.exact[i] for i in self._exact}
            values_of = partial(self._values, fixed)
            noise = {
                i: of_group.num_entries / of_group.along.shape[-1]
                for sites, of_group in zip(self._groups, each.derivatives, strict=True)
                for i in sites
                if i in residuals
            }
            learned = Learned(exact, each.guesses, residuals, noise, each.varying, values_of)
            of_guess = self._feedback.gradient(self._guess, learned)
        return Estimate(grad, of_guess)

    def _combined(
        self, fixed: dict[Any, Array], example: _Example, weights: list[Array]
    ) -> tuple[dict[int, Array], dict[int, Array]]:
        """Return an example's estimates of ∂ℓ/∂z by site, and their parts besides the guess."""
        values = self._values(fixed, example.varying)
        residuals = {
            i: weighted_sum(example.noise[i], of_group, accumulation_dtype(of_group.dtype))
            for sites, of_group in zip(self._groups, weights, strict=True)
            for i in sites
            if i in example.noise
        }
        cotangents = {**residuals, **example.guesses}
        if self._use == "corrected":
            cotangents |= {i: residuals[i] + guess for i, guess in example.guesses.items()}
        for i, found in cotangents.items():
            if (after := self._loss.noisy[i].post_activation) is not None:
                cotangents[i] = after.pull_back(values)(found)
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
            of_each = i in loss.exact or loss.sites[i].own_noise
            if of_each and not loss.sites[i].per_example:
                cotangent = cotangent.sum(0)
            scaled.append(cotangent.astype(value.dtype))
        (grad,) = pull_back(scaled)
        return [g.astype(accumulation_dtype(g.dtype)) for g in grad]
