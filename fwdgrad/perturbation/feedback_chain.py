"""Chained feedback: the guess at a layer is made of the guess at the next one.

The derivative by a pre-activation z_1 is that by the next one, z_2, times weights, where the units
in between are on. Which are on differs by example. So no fixed matrix makes it of the last layers'
error e, but one makes it of the derivative by z_2:

    c_2 = A_2 e        c_1 = A_1 c_2        each zero where its post-activation is flat

With A_1 the transposed weights of a dense layer this is backpropagation. A_1 is as large as they.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fwdgrad.perturbation.control_variates import feedback
from fwdgrad.perturbation.sites import Site
from fwdgrad.util.jax_internals import Program
from fwdgrad.util.trees import Array


@dataclass(frozen=True)
class Chain:
    """The arrays that guesses are made of: the guess at the next site, or the errors.

    Attributes:
      following: site -> the site whose guess it reads; a site without one reads the errors.
    """

    following: Mapping[int, int]

    def read(self, i: int, errors: Array, guesses: Mapping[int, Array]) -> Array:
        """Return what an example's guess at a site is made of, flat.

        Args:
          i: the site.
          errors: the exact derivatives by the last layers' values, flat.
          guesses: site -> the guess, or any array of its shape.
        """
        return guesses[self.following[i]].ravel() if i in self.following else errors

    def guesses(
        self, errors: Array, matrices: Mapping[int, Array], masks: Mapping[int, Array]
    ) -> dict[int, Array]:
        """Return an example's guess at each site that has a matrix."""
        made: dict[int, Array] = {}
        for i in sorted(matrices, reverse=True):  # a site that follows comes later
            made[i] = feedback(self.read(i, errors, made), matrices[i], masks[i])
        return made


def next_sites(program: Program, sites: list[Site], chosen: Iterable[int]) -> dict[int, int]:
    """Return for each chosen site the first chosen one whose value depends on it, if there is one.

    Args:
      program: of one example's loss, inlined.
      sites: all of its sites, in order.
      chosen: indices of sites. A parameter with the noise of its layer's value has a next site, but
        is none: its value does not depend on another.
    """
    chosen = sorted(chosen)
    following = {}
    for i in chosen:
        site = sites[i]
        reached = {site.variable if site.instead_of is None else site.instead_of}
        for equation in program.eqns:
            if not reached.isdisjoint(equation.reads):
                reached.update(equation.outvars)
        later = (j for j in chosen if j > i and sites[j].variable in reached - {site.variable})
        if (first := next(later, None)) is not None:
            following[i] = first
    return following
