"""One example pushed forward with noise at its sites, and exactly from its last ones on."""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.perturbation.kernel_noise import with_kernel_noise
from fwdgrad.perturbation.links import Link, find_links
from fwdgrad.perturbation.noisy_site import (
    NoisySite,
    Operand,
    find_noisy_site,
    find_steps,
    prevents_loop,
)
from fwdgrad.perturbation.sites import find_sites
from fwdgrad.propagation.interpreter import Context, propagate_equations
from fwdgrad.propagation.jaxprs import evaluate, read_atoms, variables
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.forms import Tangent, count_tangents, dense, inner, padded, taken
from fwdgrad.util.backend import LOOPS, choices
from fwdgrad.util.jax_internals import Program, is_inexact
from fwdgrad.util.shapes import merge_axes
from fwdgrad.util.sharding import has_explicit_axes
from fwdgrad.util.source_info import context_of
from fwdgrad.util.trees import Array
from fwdgrad.util.validation import exact_last_note


class Pushed(NamedTuple):
    """The result of pushing an example forward.

    Attributes:
      outputs: of the loss, the loss first.
      derivatives: (number of groups, k), ∂ℓ along each tangent of each group's noise.
      noise: site -> its k tangents, zero where the mask is; of sites whose noise was given.
      masks: site -> the entries at which noise goes in, a boolean or an array of its shape.
      exact: site -> ∂ℓ/∂z, of the sites whose derivative is exact.
      values: variable -> value, of those that pulling back to the parameters reads.
    """

    outputs: list[Array]
    derivatives: Array
    noise: dict[int, Any]
    masks: dict[int, Array]
    exact: dict[int, Array]
    values: dict[Any, Array]


class NoisyLoss:
    """The loss of one example, as a program in which the places of noise are known.

    Attributes:
      program: of the loss; its first inputs are the parameters.
      sites: all of them.
      varying: the variables that depend on the example.
      exact: the sites whose derivative is taken exactly, if `exact_last` those that are last.
      noisy: the others, by index.
      groups: the indices of the noisy sites, parted by whose noise goes together.
      links: if `chained`, the link of each noisy site with noise of each example's own.
      read: the variables that layers of sites, post-activations that narrow, and links read.
    """

    def __init__(
        self,
        program: Program,
        num_parameters: int,
        *,
        layerwise: bool,
        exact_last: bool,
        at_kernels: bool,
        chained: bool = False,
    ):
        self.program = program
        plan = find_sites(self.program, num_parameters)
        if at_kernels:
            plan = with_kernel_noise(self.program, plan, exact_last)
        self.sites, self.varying = plan.sites, plan.varying
        self.exact = [i for i, site in enumerate(self.sites) if exact_last and site.is_last]
        noisy = [i for i in range(len(self.sites)) if i not in self.exact]
        self.groups = self._by_layer(noisy) if layerwise else [noisy] if noisy else []
        self.noisy = {
            i: find_noisy_site(program, i, self.sites[i], group, plan)
            for group, members in enumerate(self.groups)
            for i in members
        }
        in_head = set(plan.head) if self.exact else set()
        self._head = [self.program.eqns[i] for i in sorted(in_head)]
        after = [x.post_activation for x in self.noisy.values() if x.post_activation is not None]
        self.links = self._links(num_parameters) if chained else {}
        back: list[Any] = [*self.sites, *(x for x in after if x.narrows), *self.links.values()]
        self.read = self._in_order({v for x in back for v in x.read})
        made = {v for e in self._head for v in e.outvars}
        read = {v for e in self._head for v in e.reads} - made
        self._into_head = self._in_order(read | {self.sites[i].variable for i in self.exact})
        kept = {*self.read, *self._into_head, *variables(program.outvars)}
        self._steps = find_steps(program, self.noisy.values(), in_head, kept)
        self._reached = self._reached_by_noise()

    def _by_layer(self, noisy: Sequence[int]) -> list[list[int]]:
        """Return sites in groups of one, but those that stand for one value together."""
        groups: dict[Any, list[int]] = {}
        for i in noisy:
            instead_of = self.sites[i].instead_of
            groups.setdefault(i if instead_of is None else instead_of, []).append(i)
        return [*groups.values()]

    def _links(self, num_parameters: int) -> dict[int, Link]:
        """Return the links between sites that depend on the example; the exact ones are last."""
        own = {i: x for i, x in self.noisy.items() if x.site.own_noise}
        ends = [*own, *(i for i in self.exact if self.sites[i].per_example)]
        return find_links(self.program, num_parameters, self.sites, own, ends)

    def _reached_by_noise(self) -> set[Any]:
        """Return the variables that depend on the noise, and the values of exact sites."""
        reached = {
            *(x.entry for x in self.noisy.values()),
            *(self.sites[i].variable for i in self.exact),
        }
        for equation in (e for step in self._steps for e in step.equations):
            goes_on = equation.primitive is not primitives.stop_gradient_p
            if goes_on and not reached.isdisjoint(equation.reads):
                reached.update(equation.outvars)
        return reached

    def describe(self) -> list[tuple[str, tuple[int, ...], list[int], str]]:
        """Return place, shape, indices of its parameters, and kind of derivative of each site."""
        inputs = {v: i for i, v in enumerate(self.program.invars)}
        rows = []
        for i, site in enumerate(self.sites):
            kind = "noise of each example's own" if site.own_noise else "noise, one for all"
            if i in self.exact:
                kind = "its exact derivative"
            entry = self.noisy[i].entry if i in self.noisy else site.variable
            parameters = sorted(inputs[v] for v in site.parameters)
            rows.append((site.place, entry.aval.shape, parameters, kind))
        return rows

    def _in_order(self, chosen: Set[Any]) -> list[Any]:
        """Return variables in the order in which they are made, the same in every run."""
        made = [v for e in self.program.eqns for v in e.outvars]
        return [v for v in (*self.program.constvars, *self.program.invars, *made) if v in chosen]

    def push(
        self,
        leaves: Sequence[Array],
        example: Sequence[Array],
        noise: dict[int, Any],
        num_examples: Any,
    ) -> Pushed:
        """Push the tangents of each group forward, as many of each.

        Args:
          leaves: the parameters.
          example: the other inputs.
          noise: for each noisy site, its tangents; or empty, and no tangent is pushed.
          num_examples: the number of examples, of which this is one.
        """
        values = self.program.environment([*leaves, *example])
        number = max(map(count_tangents, noise.values()), default=1)
        chunk = self._chunk(noise, number, num_examples)
        in_chunks = chunk < number
        put_in: dict[int, Any] = {}
        masks: dict[int, Array] = {}
        duals: dict[Any, Tangent] = {}
        for site in self._entries(values, duals, kept_all=in_chunks):
            i, entry = site.index, site.entry
            with context_of(site.made_by):
                masks[i] = site.mask(values)
                if i not in noise:
                    continue
                if (record := current_record()) is not None:
                    record.enter(site.name, noise[i])
                put_in[i] = site.masked(noise[i], masks[i])
                if not in_chunks:
                    duals[entry] = site.enter(duals.get(entry), put_in[i])
        exact = self._head_derivatives(values)
        if in_chunks:
            rows = self._along_chunks(values, put_in, exact, number, chunk)
        else:
            rows = self._along(duals, exact, number)
        return Pushed(
            read_atoms(self.program.outvars, values),
            rows,
            put_in,
            {i: masks[i] for i in self.noisy},
            {i: exact[self.sites[i].variable] for i in self.exact},
            {v: values[v] for v in self.read},
        )

    def _chunk(self, noise: Mapping[int, Any], number: int, num_examples: Any) -> int:
        """Return how many of K tangents of each group are pushed together: a divisor of K."""
        limit = choices().max_entries
        sizes = [num_examples, *(site.entry.aval.size for site in self.noisy.values())]
        sliceable = all(isinstance(v, jax.Array | Blocks) for v in noise.values())
        sliceable &= all(isinstance(n, int) for n in sizes) and not has_explicit_axes()
        if limit is None or not noise or not sliceable:
            return number
        most = max(1, limit // max(1, num_examples * max(sizes[1:])))
        chunk = max(n for n in range(1, number + 1) if number % n == 0 and n <= most)
        if chunk == number or (2 * chunk < most and number < 2 * most):  # K is a prime, say
            return number
        return number if any(map(prevents_loop, self.program.eqns)) else chunk

    def _entries(
        self,
        values: dict[Any, Any],
        duals: dict[Any, Tangent],
        *,
        kept_all: bool = False,
        evaluated: bool = False,
    ) -> Iterator[NoisySite]:
        """Evaluate the loss; yield each site when its noise enters.

        Args:
          values: those of the inputs. The others are added.
          duals: the tangents. Those of other variables are added.
          kept_all: if true, no value is dropped.
          evaluated: if true, `values` has all values already, and is left as it is.
        """
        context = Context(values_known=evaluated)
        for step in self._steps:
            kept = None if kept_all or evaluated else step.kept
            if not step.in_head:
                propagate_equations(context, step.equations, values, duals, kept)
            elif not evaluated:
                evaluate(step.equations, values)
            for site in step.sites:
                if isinstance(site.entry, Operand):
                    value = site.site.variable
                    values[site.entry], duals[site.entry] = values[value], duals.get(value)
                yield site

    def _along_chunks(
        self,
        values: dict[Any, Any],
        noise: Mapping[int, Any],
        exact: Mapping[Any, Array],
        number: int,
        chunk: int,
    ) -> Array:
        """Return the derivatives along all tangents, some of them at a time, at known values."""

        def of_chunk(first: Array) -> Array:
            own = dict(values)
            duals: dict[Any, Tangent] = {}
            for site in self._entries(own, duals, evaluated=True):
                if (tangents := noise.get(site.index)) is not None:
                    with context_of(site.made_by):
                        part = taken(tangents, first, chunk)
                        duals[site.entry] = site.enter(duals.get(site.entry), part)
            return self._along(duals, exact, chunk)

        LOOPS.number += 1
        rows = jax.lax.map(of_chunk, jnp.arange(0, number, chunk))  # (chunks, groups, chunk)
        return merge_axes(jnp.moveaxis(rows, 0, 1), 1, 3)

    def _along(
        self, duals: Mapping[Any, Tangent], exact: Mapping[Any, Array], number: int
    ) -> Array:
        """Return the derivatives of the loss along the tangents, (number of groups, number).

        With c = ∂ℓ/∂x for each x that goes into the head, it is Σ_x ⟨c, ẋ⟩.
        """
        loss, total = self.program.outvars[0], len(self.groups) * number
        if self.exact:
            reached = ((duals.get(v), c) for v, c in exact.items())
            rows = [inner(dual, c) for dual, c in reached if dual is not None]
        else:
            found = None if isinstance(loss, jex_core.Literal) else duals.get(loss)
            rows = [] if found is None else [dense(found)]
        if not rows:  # no noise reaches the loss
            return jnp.zeros((len(self.groups), number), loss.aval.dtype)
        first, *others = (padded(x, total) for x in rows)
        return sum(others, first).reshape(len(self.groups), number)

    def _head_derivatives(self, values: Mapping[Any, Any]) -> dict[Any, Array]:
        """Return the derivatives of the loss by the variables that go into the head.

        (The head's values are computed twice, which XLA finds.)
        """
        if not self.exact:
            return {}
        loss_variable = self.program.outvars[0]
        inputs = [v for v in self._into_head if v in self._reached and is_inexact(v)]

        def head(xs: list[Array]) -> Array:
            known = {**values, **dict(zip(inputs, xs, strict=True))}
            evaluate(self._head, known)
            return known[loss_variable]

        with exact_last_note("Activities"):
            loss, pull_back = jax.vjp(head, [values[v] for v in inputs])
            (cotangents,) = pull_back(jnp.ones_like(loss))
        return dict(zip(inputs, cotangents, strict=True))
