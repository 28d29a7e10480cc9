"""One example pushed forward with noise at its sites, and exactly from its last ones on."""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from fwdgrad.perturbation.post_activation import find_following
from fwdgrad.perturbation.sites import find_sites
from fwdgrad.propagation.interpreter import Context, padded, propagate_equations
from fwdgrad.propagation.jaxprs import evaluate, variables
from fwdgrad.propagation.record import current_record
from fwdgrad.propagation.rules.registry import RULES
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import (
    Tangent,
    add,
    count_tangents,
    dense,
    inner,
    is_structured,
    with_origin,
)
from fwdgrad.util.trees import Array
from fwdgrad.util.validation import exact_last_note


class Pushed(NamedTuple):
    """What pushing an example forward gives.

    Attributes:
      outputs: of the loss, the loss first.
      derivatives: (number of groups, k), ∂ℓ along each tangent of each group's noise.
      noise: site -> its k tangents, as they were put in.
      masks: site -> where its noise was put in, a boolean or an array of its shape.
      exact: site -> ∂ℓ/∂z, of those that are exact.
      pull_back: site -> from the derivative where its noise was put in to that by its value.
      values: variable -> value, of those that the sites' programs read.
    """

    outputs: list[Array]
    derivatives: Array
    noise: dict[int, Any]
    masks: dict[int, Array]
    exact: dict[int, Array]
    pull_back: dict[int, Callable[[Array], Array]]
    values: dict[Any, Array]


class NoisyLoss:
    """The loss of one example, as a jaxpr in which the places of noise are known.

    Attributes:
      jaxpr: without calls; its first inputs are the parameters.
      sites: all of them.
      varying: the variables that depend on the example.
      exact: the sites whose derivative is taken exactly, if `exact_last` those that are last.
      noisy: the others.
      groups: the noisy sites, parted by whose noise goes together.
      following: noisy site -> what its value goes through first, if that is of use. (Noise that
        is one for all examples is weighed as it was drawn, so it is put in as it is.)
      noisy_at: site -> where its noise goes in: its value, or a narrower one that it goes through.
    """

    def __init__(self, closed: Any, num_parameters: int, layerwise: bool, exact_last: bool):
        self.jaxpr = closed.jaxpr
        self._consts = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        plan = find_sites(self.jaxpr, num_parameters)
        self.sites, self.varying = plan.sites, plan.varying
        self.exact = [i for i, site in enumerate(self.sites) if exact_last and site.is_last]
        self.noisy = [i for i in range(len(self.sites)) if i not in self.exact]
        together = [self.noisy] if self.noisy else []
        self.groups = [[i] for i in self.noisy] if layerwise else together
        self.following = {
            i: after
            for i in self.noisy
            if self.sites[i].per_example
            and (after := find_following(self.jaxpr, self.sites[i], plan)) is not None
        }
        at_sites = {i: site.variable for i, site in enumerate(self.sites)}
        self.noisy_at = at_sites | {i: after.noisy for i, after in self.following.items()}
        self._head = [self.jaxpr.eqns[i] for i in plan.head] if self.exact else []
        self.read = self._in_order({v for site in self.sites for v in site.read})
        made = {v for e in self._head for v in e.outvars}
        read = {v for e in self._head for v in variables(e.invars)} - made
        self._into_head = self._in_order(read | {self.sites[i].variable for i in self.exact})

    def _in_order(self, chosen: Set[Any]) -> list[Any]:
        """Variables in the order in which they are made, the same in every run."""
        made = [v for e in self.jaxpr.eqns for v in e.outvars]
        return [v for v in (*self.jaxpr.constvars, *self.jaxpr.invars, *made) if v in chosen]

    def push(
        self,
        leaves: Sequence[Array],
        example: Sequence[Array],
        noise: dict[int, Any],
    ) -> Pushed:
        """Push the tangents of each group forward, as many of each.

        Args:
          leaves: the parameters.
          example: the other inputs.
          noise: for each noisy site, its tangents.
        """
        inputs = dict(zip(self.jaxpr.invars, [*leaves, *example], strict=True))
        values: dict[Any, Any] = {**self._consts, **inputs}
        duals: dict[Any, Tangent] = {}
        number = max(map(count_tangents, noise.values()), default=1)
        injection = _Injection(self, self._head, noise, number)
        context = Context(RULES, injection=injection)
        kept = {*self.read, *self._into_head, *variables(self.jaxpr.outvars)}
        kept.update(v for after in self.following.values() for v in after.read)
        propagate_equations(context, self.jaxpr.eqns, values, duals, kept)
        assert injection.put_in.keys() == set(self.noisy)
        if self.exact:
            derivatives, exact = self._exactly(values, duals)
        else:
            (loss,) = variables(self.jaxpr.outvars[:1]) or [None]  # it may be a constant
            derivatives, exact = duals.get(loss), {}
        if derivatives is None:  # the loss does not depend on what is noisy
            derivatives = jnp.zeros(0, self.jaxpr.outvars[0].aval.dtype)
        rows = padded(dense(derivatives), len(self.groups) * number)
        outputs = [
            v.val if isinstance(v, jex_core.Literal) else values[v] for v in self.jaxpr.outvars
        ]
        return Pushed(
            outputs,
            rows.reshape(len(self.groups), number),
            injection.put_in,
            injection.masks,
            exact,
            {i: after.pull_back(values) for i, after in self.following.items()},
            {v: values[v] for v in self.read},
        )

    def _exactly(
        self, values: dict[Any, Any], duals: dict[Any, Tangent]
    ) -> tuple[Tangent, dict[int, Array]]:
        """The derivatives of the loss along what reaches the head, and by the sites before it.

        With c = ∂ℓ/∂x for each x that goes into the head, the derivative along tangents is Σ_x ⟨c,
        ẋ⟩. (The head's values are computed twice, which XLA finds.)
        """
        of_sites = {self.sites[i].variable: i for i in self.exact}
        inputs = [v for v in self._into_head if v in of_sites or duals.get(v) is not None]
        loss_variable = self.jaxpr.outvars[0]

        def head(xs: list[Array]) -> Array:
            known = {**values, **dict(zip(inputs, xs, strict=True))}
            evaluate(self._head, known)
            return known[loss_variable]

        with exact_last_note("Activities"):
            loss, pull_back = jax.vjp(head, [values[v] for v in inputs])
            (cotangents,) = pull_back(jnp.ones_like(loss))
        derivatives: Tangent = None  # whatever reaches the loss comes in by the head's inputs
        exact = {}
        for v, cotangent in zip(inputs, cotangents, strict=True):
            if v in of_sites:
                exact[of_sites[v]] = cotangent
            if (dual := duals.get(v)) is not None:
                rows = inner(dual, cotangent)
                if derivatives is not None and count_tangents(derivatives) != len(rows):
                    most = max(count_tangents(derivatives), len(rows))
                    derivatives, rows = padded(dense(derivatives), most), padded(rows, most)
                derivatives = add(derivatives, rows)
        return derivatives, exact


class _Injection:
    """Puts noise in at sites; each group's tangents come after those of the groups before it.

    Attributes:
      put_in: site -> its noise, zero where it has no effect.
      masks: site -> whether an entry has noise, a boolean or an array of them.
    """

    def __init__(self, loss: NoisyLoss, head: Sequence[Any], noise: dict[int, Any], number: int):
        self._head = {id(equation) for equation in head}
        self._noise, self._number = noise, number
        self._record = current_record()
        self._places = [site.place for site in loss.sites]
        self._group = {i: g for g, sites in enumerate(loss.groups) for i in sites}
        self._following = loss.following
        self._at_operand: dict[tuple[int, int], int] = {}
        self._at_output: dict[Any, int] = {}
        for i in loss.noisy:
            site, variable = loss.sites[i], loss.noisy_at[i]
            if site.operand is None or variable is not site.variable:
                self._at_output[variable] = i
            else:
                index, position = site.operand
                self._at_operand[id(loss.jaxpr.eqns[index]), position] = i
        self.put_in: dict[int, Any] = {}
        self.masks: dict[int, Array] = {}

    def at_operand(
        self, equation: Any, position: int, values: Mapping[Any, Any], tangent: Tangent
    ) -> Tangent:
        if id(equation) in self._head:
            return None  # what reaches the head is differentiated there, exactly
        i = self._at_operand.get((id(equation), position))
        return tangent if i is None else self._put(i, values, tangent)

    def at_output(self, variable: Any, values: Mapping[Any, Any], tangent: Tangent) -> Tangent:
        i = self._at_output.get(variable)
        return tangent if i is None else self._put(i, values, tangent)

    def _put(self, i: int, values: Mapping[Any, Any], tangent: Tangent) -> Tangent:
        noise, mask = self._noise[i], jnp.ones((), bool)
        if self._record is not None:
            self._record.enter(site_name(i), noise)
        if (after := self._following.get(i)) is not None:
            mask = after.has_effect(values)
            masked = _masked(noise, mask)
            if is_structured(noise) and not is_structured(masked):
                self._lose(i, "masked where the activation after it is flat")
            noise = masked
        self.put_in[i], self.masks[i] = noise, mask
        noise = with_origin(noise, (site_name(i),))
        if self._group[i] == 0:
            total = add(tangent, noise)
            if is_structured(noise) and not is_structured(total):
                self._lose(i, "added to tangents of the noise before it, which are dense there")
            return total
        # So far there are tangents of earlier groups alone, and they come first.
        structured = isinstance(noise, StructuredTangent)
        shape = noise.shape if structured else noise.shape[1:]
        earlier = jnp.zeros((0, *shape), noise.dtype) if tangent is None else dense(tangent)
        earlier = padded(earlier, self._group[i] * self._number)
        total = noise.append_to(earlier) if structured else jnp.concatenate([earlier, noise])
        if structured and not is_structured(total):
            self._lose(i, "it follows the noise of other layers, which is dense there")
        return total

    def _lose(self, i: int, reason: str) -> None:
        """Record that the structure of a site's noise is lost where it is put in."""
        if self._record is not None:
            self._record.lose((site_name(i),), f"putting it in at {self._places[i]}", reason)


def site_name(i: int) -> str:
    """Return the name of a site in records."""
    return f"site {i}"


def _masked(noise: Any, mask: Array) -> Any:
    ones = mask.astype(noise.dtype)
    return noise.masked(ones) if is_structured(noise) else noise * ones[None]
