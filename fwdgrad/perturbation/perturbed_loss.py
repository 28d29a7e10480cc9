"""One example pushed forward with noise at its sites, and exactly from its last ones on."""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core

from fwdgrad.perturbation.kernel_noise import with_kernel_noise
from fwdgrad.perturbation.links import Link, find_links
from fwdgrad.perturbation.noisy_site import NoisySite, Operand
from fwdgrad.perturbation.post_activation import find_post_activation
from fwdgrad.perturbation.sites import Plan, find_sites
from fwdgrad.propagation.interpreter import Context, propagate_equations
from fwdgrad.propagation.jaxprs import evaluate, read_atoms, variables
from fwdgrad.tangents.forms import (
    Tangent,
    add,
    count_tangents,
    dense,
    inner,
    padded,
)
from fwdgrad.util.jax_internals import Equation, Program
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


class _Step(NamedTuple):
    """Equations that are evaluated without a stop, and the sites whose noise enters after them.

    Attributes:
      equations: in order.
      in_head: True if no tangent goes through them: the head is differentiated as a whole.
      sites: in the order of their entries.
      kept: the variables that later steps read.
    """

    equations: list[Equation]
    in_head: bool
    sites: list[NoisySite]
    kept: set[Any]


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
        self.noisy = {i: self._noisy_site(i, plan) for i in noisy}
        in_head = set(plan.head) if self.exact else set()
        self._head = [self.program.eqns[i] for i in sorted(in_head)]
        after = [x.post_activation for x in self.noisy.values() if x.post_activation is not None]
        self.links = self._links(num_parameters) if chained else {}
        back: list[Any] = [*self.sites, *(x for x in after if x.narrows), *self.links.values()]
        self.read = self._in_order({v for x in back for v in x.read})
        made = {v for e in self._head for v in e.outvars}
        read = {v for e in self._head for v in e.reads} - made
        self._into_head = self._in_order(read | {self.sites[i].variable for i in self.exact})
        self._steps = self._scheduled(in_head)

    def _by_layer(self, noisy: Sequence[int]) -> list[list[int]]:
        """Return sites in groups of one, but those that stand for one value together."""
        groups: dict[Any, list[int]] = {}
        for i in noisy:
            instead_of = self.sites[i].instead_of
            groups.setdefault(i if instead_of is None else instead_of, []).append(i)
        return [*groups.values()]

    def _noisy_site(self, i: int, plan: Plan) -> NoisySite:
        """Return a noisy site, with its group, its post-activation and the entry of its noise.

        Noise that is one for all examples is weighed as it was drawn, so it is put in as it is.
        """
        site = self.sites[i]
        after = find_post_activation(self.program, site, plan) if site.per_example else None
        group = next(g for g, members in enumerate(self.groups) if i in members)
        entry = site.variable if after is None else after.noisy
        if site.operand is None or entry is not site.variable:
            made_by = next(e for e in self.program.eqns if entry in e.outvars)
            return NoisySite(i, site, group, after, entry, made_by)
        reader = self.program.eqns[site.operand[0]]
        operand = Operand(entry.aval, *site.operand)
        return NoisySite(i, site, group, after, operand, reader)

    def _links(self, num_parameters: int) -> dict[int, Link]:
        """Return the links between sites that depend on the example; the exact ones are last."""
        own = {i: x for i, x in self.noisy.items() if x.site.own_noise}
        ends = [*own, *(i for i in self.exact if self.sites[i].per_example)]
        return find_links(self.program, num_parameters, self.sites, own, ends)

    def _scheduled(self, in_head: Set[int]) -> list[_Step]:
        """Return the steps of an evaluation, each up to the next entry of noise."""
        at_output: dict[Any, list[NoisySite]] = {}
        at_operand: dict[int, list[NoisySite]] = {}
        for site in self.noisy.values():
            if isinstance(site.entry, Operand):
                at_operand.setdefault(site.entry.reader, []).append(site)
            else:
                at_output.setdefault(site.entry, []).append(site)
        steps = [_Step([], False, [], set())]

        def stop(sites: list[NoisySite], now_in_head: bool) -> None:
            """Close the last step with the sites, and open one for equations of this kind."""
            if sites or now_in_head != steps[-1].in_head:
                steps[-1] = steps[-1]._replace(sites=sites)
                steps.append(_Step([], now_in_head, [], set()))

        for i, equation in enumerate(self.program.eqns):
            entering = at_operand.get(i, [])
            stop(entering, i in in_head)
            if entering:
                operands = {site.entry.position: site.entry for site in entering}
                atoms = [operands.get(j, v) for j, v in enumerate(equation.invars)]
                equation = equation.renamed(atoms, equation.outvars)
            steps[-1].equations.append(equation)
            sites = [site for v in equation.outvars for site in at_output.get(v, [])]
            stop(sites, steps[-1].in_head)
        kept = {*self.read, *self._into_head, *variables(self.program.outvars)}
        for site in self.noisy.values():
            kept.add(site.site.variable)
            kept.update(site.post_activation.read if site.post_activation else ())
        for k, step in reversed([*enumerate(steps)]):
            steps[k] = step._replace(kept=set(kept))
            kept.update(v for e in step.equations for v in e.reads)
        return steps

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
        self, leaves: Sequence[Array], example: Sequence[Array], noise: dict[int, Any]
    ) -> Pushed:
        """Push the tangents of each group forward, as many of each.

        Args:
          leaves: the parameters.
          example: the other inputs.
          noise: for each noisy site, its tangents; or empty, and no tangent is pushed.
        """
        values = self.program.environment([*leaves, *example])
        duals: dict[Any, Tangent] = {}
        context = Context()
        put_in: dict[int, Any] = {}
        masks: dict[int, Array] = {}
        for step in self._steps:
            if step.in_head:
                evaluate(step.equations, values)
            else:
                propagate_equations(context, step.equations, values, duals, step.kept)
            for site in step.sites:
                i, entry, v = site.index, site.entry, site.site.variable
                with context_of(site.made_by):
                    masks[i] = site.mask(values)
                    if isinstance(entry, Operand):
                        values[entry], duals[entry] = values[v], duals.get(v)
                    if i not in noise:
                        continue
                    if context.record is not None:
                        context.record.enter(site.name, noise[i])
                    put_in[i] = site.masked(noise[i], masks[i])
                    duals[entry] = site.enter(duals.get(entry), put_in[i])
        if self.exact:
            derivatives, exact = self._exactly(values, duals)
        else:
            loss, exact = self.program.outvars[0], {}
            is_constant = isinstance(loss, jex_core.Literal)
            derivatives = None if is_constant else duals.get(loss)
        if derivatives is None:  # the loss does not depend on what is noisy
            derivatives = jnp.zeros(0, self.program.outvars[0].aval.dtype)
        number = max(map(count_tangents, noise.values()), default=1)
        rows = padded(dense(derivatives), len(self.groups) * number)
        return Pushed(
            read_atoms(self.program.outvars, values),
            rows.reshape(len(self.groups), number),
            put_in,
            {i: masks[i] for i in self.noisy},
            exact,
            {v: values[v] for v in self.read},
        )

    def _exactly(
        self, values: dict[Any, Any], duals: dict[Any, Tangent]
    ) -> tuple[Tangent, dict[int, Array]]:
        """Return the derivatives of the loss along tangents, and by the sites before the head.

        With c = ∂ℓ/∂x for each x that goes into the head, the derivative along tangents is Σ_x ⟨c,
        ẋ⟩. (The head's values are computed twice, which XLA finds.)
        """
        of_sites = {self.sites[i].variable: i for i in self.exact}
        inputs = [v for v in self._into_head if v in of_sites or duals.get(v) is not None]
        loss_variable = self.program.outvars[0]

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
