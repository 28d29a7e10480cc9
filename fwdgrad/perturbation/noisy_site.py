"""A site of an example's loss with its noise: its entry, mask and group; the steps between them."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import primitives

from fwdgrad.perturbation.post_activation import PostActivation, find_post_activation
from fwdgrad.perturbation.sites import Plan, Site, Variable
from fwdgrad.propagation.record import current_record
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.forms import (
    Tangent,
    add,
    count_tangents,
    dense,
    is_structured,
    padded,
    with_origin,
)
from fwdgrad.util.jax_internals import Equation, Program
from fwdgrad.util.trees import Array


@dataclass(frozen=True, eq=False)
class Operand:
    """A variable of its own for a value that one equation alone reads with noise.

    Attributes:
      aval: of the value.
      reader: the index of the equation.
      position: of the value among its operands.
    """

    aval: Any
    reader: int
    position: int


@dataclass(frozen=True, eq=False)
class NoisySite:
    """A site with the noise that enters there.

    Attributes:
      index: of the site, among all of the loss.
      site: the site.
      group: the number of groups whose noise is pushed forward before its own.
      post_activation: the parameter-free operations after it, if they are of use.
      entry: the variable at which the noise enters: the site's own value, that value as one
        equation reads it, or a narrower one after its post-activation.
      made_by: the equation that makes or reads the variable.
    """

    index: int
    site: Site
    group: int
    post_activation: PostActivation | None
    entry: Variable | Operand
    made_by: Equation

    @property
    def name(self) -> str:
        """The name of the site in records."""
        return site_name(self.index)

    def mask(self, values: Mapping[Any, Any]) -> Array:
        """Return False at entries where noise has no effect, True elsewhere."""
        if self.post_activation is None:
            return jnp.ones((), bool)
        return self.post_activation.has_effect(values)

    def masked(self, noise: Any, mask: Array) -> Any:
        """Return the noise, zero where `mask` is False."""
        if self.post_activation is None:
            return noise
        ones = mask.astype(noise.dtype)
        if not is_structured(noise):
            return noise * ones[None]
        masked = noise.masked(ones)
        if not is_structured(masked):
            self._record_loss("masked where the activation after it is flat")
        return masked

    def enter(self, tangent: Tangent, noise: Any) -> Tangent:
        """Return the tangents of the entry with the noise.

        Noise of the first group is added to the tangent. That of a later group comes after the
        tangents of the groups before: up to here there are no others.

        Args:
          tangent: of the entry without the noise.
          noise: K tangents, as many for each site.
        """
        noise = with_origin(noise, (self.name,))
        if self.group == 0:
            total = add(tangent, noise)
            reason = "added to tangents of the noise before it, which are dense there"
        else:
            structured = isinstance(noise, StructuredTangent)
            shape = noise.shape if structured else noise.shape[1:]
            earlier = jnp.zeros((0, *shape), noise.dtype) if tangent is None else dense(tangent)
            earlier = padded(earlier, self.group * count_tangents(noise))
            total = noise.append_to(earlier) if structured else jnp.concatenate([earlier, noise])
            reason = "it follows the noise of other layers, which is dense there"
        if is_structured(noise) and not is_structured(total):
            self._record_loss(reason)
        return total

    def _record_loss(self, reason: str) -> None:
        if (record := current_record()) is not None:
            record.lose((self.name,), f"putting it in at {self.site.place}", reason)


def site_name(i: int) -> str:
    """Return the name of a site in records."""
    return f"site {i}"


def find_noisy_site(program: Program, i: int, site: Site, group: int, plan: Plan) -> NoisySite:
    """Return a noisy site, with its post-activation and the entry of its noise.

    Noise that is one for all examples is weighed as it was drawn, so it is put in as it is.

    Args:
      program: of the loss.
      i: the index of the site.
      site: the site.
      group: the number of groups whose noise is pushed forward before its own.
      plan: of the sites of the loss.
    """
    after = find_post_activation(program, site, plan) if site.per_example else None
    entry = site.variable if after is None else after.noisy
    if site.operand is None or entry is not site.variable:
        made_by = next(e for e in program.eqns if entry in e.outvars)
        return NoisySite(i, site, group, after, entry, made_by)
    reader = program.eqns[site.operand[0]]
    return NoisySite(i, site, group, after, Operand(entry.aval, *site.operand), reader)


class Step(NamedTuple):
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


def find_steps(
    program: Program, noisy: Iterable[NoisySite], in_head: Set[int], kept: Set[Any]
) -> list[Step]:
    """Return the steps of an evaluation, each up to the next entry of noise.

    Args:
      program: of the loss.
      noisy: the sites.
      in_head: the indices of the equations of the head.
      kept: the variables that are read after the evaluation.
    """
    at_output: dict[Any, list[NoisySite]] = {}
    at_operand: dict[int, list[NoisySite]] = {}
    kept = set(kept)
    for site in noisy:
        kept |= {site.site.variable, *(site.post_activation.read if site.post_activation else ())}
        if isinstance(site.entry, Operand):
            at_operand.setdefault(site.entry.reader, []).append(site)
        else:
            at_output.setdefault(site.entry, []).append(site)
    steps = [Step([], False, [], set())]

    def stop(sites: list[NoisySite], now_in_head: bool) -> None:
        """Close the last step with the sites, and open one for equations of this kind."""
        if sites or now_in_head != steps[-1].in_head:
            steps[-1] = steps[-1]._replace(sites=sites)
            steps.append(Step([], now_in_head, [], set()))

    for i, equation in enumerate(program.eqns):
        entering = at_operand.get(i, [])
        stop(entering, i in in_head)
        if entering:
            operands = {site.entry.position: site.entry for site in entering}
            atoms = [operands.get(j, v) for j, v in enumerate(equation.invars)]
            equation = equation.renamed(atoms, equation.outvars)
        steps[-1].equations.append(equation)
        sites = [site for v in equation.outvars for site in at_output.get(v, [])]
        stop(sites, steps[-1].in_head)
    for k, step in reversed([*enumerate(steps)]):
        steps[k] = step._replace(kept=set(kept))
        kept.update(v for e in step.equations for v in e.reads)
    return steps


def prevents_loop(equation: Equation) -> bool:
    """Return True for effects and loops, which a loop repeats, and for convolutions.

    With convolutions in a loop a step of a CNN takes 0.38 s in place of 0.16 s.
    """
    is_convolution = equation.primitive is primitives.conv_general_dilated_p
    return equation.has_loops or bool(equation.source.effects) or is_convolution
