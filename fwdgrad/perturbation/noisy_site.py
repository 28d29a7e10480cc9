"""A site of an example's loss with its noise: where it enters, its mask, and its group."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from fwdgrad.perturbation.post_activation import PostActivation
from fwdgrad.perturbation.sites import Site, Variable
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
from fwdgrad.util.jax_internals import Equation
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
