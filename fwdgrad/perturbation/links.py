"""Links: the way from the noise of a site to the next layer, with other parameters in that layer.

Between a pre-activation z_1 and the next one, z_2, are operations without parameters and a layer.
The derivative by z_1 is that by z_2, pulled back through both:

    ∂ℓ/∂z_1 = J(W)ᵀ ∂ℓ/∂z_2        J(W) = ∂z_2/∂z_1, W the layer's parameters

A link pulls back with other parameters B in the place of W, at the same values: J(B)ᵀ. So the units
in between that are off stay off, and a convolution stays one, with a kernel B.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives

from fwdgrad.perturbation.noisy_site import NoisySite, Operand
from fwdgrad.perturbation.post_activation import equations_making
from fwdgrad.perturbation.sites import Site, Variable, layer_of_site
from fwdgrad.propagation.facts import fact_of
from fwdgrad.propagation.jaxprs import evaluate
from fwdgrad.util.jax_internals import Equation, Program
from fwdgrad.util.trees import Array


@dataclass(frozen=True)
class Use:
    """The product of a parameter with what comes from the site.

    Attributes:
      outputs, parameters, inputs: the numbers of entries of the result, of the parameter and of the
        other factor.
      terms: the number of products whose sum is an entry of the result.
    """

    outputs: Any
    parameters: Any
    inputs: Any
    terms: Any

    @property
    def repeats(self) -> Any:
        """The mean number of times that a column of the parameter reads an entry of the result.

        It is 1 for a matrix, also where it is used at many positions, and the number of taps for a
        convolution of stride 1. In Σ r ⊗ c, the gradient of J(B)ᵀ c, an entry of c has this many
        terms.
        """
        return _float(self.outputs * self.terms**2) / _float(self.parameters * self.inputs)

    @property
    def positions(self) -> Any:
        """The number of places at which the parameter is used, such as pixels of a convolution."""
        return _float(self.outputs * self.terms) / _float(self.parameters)


@dataclass(frozen=True)
class Link:
    """The way from the noise of a site to the value of the next one.

    Attributes:
      start: the variable at which the noise enters.
      equations: the operations before the next layer.
      following: the next site.
      layer: the layer, a function of parameters and values.
      read: the variables that operations and layer read, `start` included.
      uses: for each parameter of the layer that is multiplied by what comes from `start`, its uses;
        by its index. The others, such as a bias, have no part in J.
    """

    start: Variable
    equations: Sequence[Equation]
    following: int
    layer: Callable[[Sequence[Array], dict[Variable, Any]], Array]
    read: frozenset[Variable]
    uses: Mapping[int, Sequence[Use]]

    def pull_back(
        self, parameters: Sequence[Array], values: Mapping[Variable, Any]
    ) -> Callable[[Array], Array]:
        """Return the function J(B)ᵀ, from the derivative by the next value to that by the start.

        Args:
          parameters: all of the loss, with B in the place of those in `uses`.
          values: those of `read`.
        """

        def run(start: Array) -> Array:
            reached = {**values, self.start: start}
            evaluate(self.equations, reached)
            return self.layer(parameters, reached)

        value, pull_back = jax.vjp(run, values[self.start])
        return lambda cotangent: pull_back(cotangent.astype(value.dtype))[0]


def find_links(
    program: Program,
    num_parameters: int,
    sites: Sequence[Site],
    noisy: Mapping[int, NoisySite],
    ends: Sequence[int],
) -> dict[int, Link]:
    """Return for each noisy site the link to the first end that its value reaches, if there is one.

    There is none where reverse mode does not go, as through a `while_loop`.

    Args:
      program: of one example's loss, inlined; its first inputs are the parameters.
      num_parameters: how many.
      sites: all of its sites.
      noisy: those to begin at, by index.
      ends: the sites at which a link may end.
    """
    links = {}
    for i, site in noisy.items():
        link = _find(program, sites, site, ends)
        if link and _goes_back(program, num_parameters, link, sites[link.following]):
            links[i] = link
    return links


def _find(
    program: Program, sites: Sequence[Site], noisy: NoisySite, ends: Sequence[int]
) -> Link | None:
    value = noisy.site.variable
    start = value if isinstance(noisy.entry, Operand) else noisy.entry
    values = {sites[j].variable: j for j in ends if sites[j].variable is not value}
    reached, passed = {start}, []
    for index, equation in enumerate(program.eqns):
        if reached.isdisjoint(equation.reads):
            continue
        if (following := next((values[v] for v in equation.outvars if v in values), None)) is None:
            passed.append(index)
            reached.update(equation.outvars)
            continue
        end = sites[following]
        before = [program.eqns[i] for i in passed if i not in end.equations]
        equations = equations_making(end.read, before)
        made = {v for e in equations for v in e.outvars}
        read = {v for e in equations for v in e.reads} | end.read
        uses = _uses(program, end, made | {start})
        layer = layer_of_site(program, end)
        return Link(start, equations, following, layer, frozenset(read - made | {start}), uses)
    return None


def _uses(program: Program, end: Site, data: set[Variable]) -> dict[int, list[Use]]:
    """Return the uses of a layer's parameters, of those that multiply the data."""
    index = {v: k for k, v in enumerate(program.invars)}
    made_of: dict[Variable, set[Variable]] = {v: {v} for v in end.parameters}
    uses: dict[int, list[Use]] = {}
    data = set(data)
    for equation in (program.eqns[i] for i in end.equations):
        parameters = set().union(*(made_of.get(v, set()) for v in equation.reads))
        if data.isdisjoint(equation.reads):
            made_of.update((v, parameters) for v in equation.outvars)
            continue
        data.update(equation.outvars)
        if not fact_of(equation.primitive).multiplies or not parameters:
            continue
        position = 0 if equation.invars[0] in made_of else 1
        inputs, result = equation.invars[1 - position].aval.size, equation.outvars[0].aval.size
        for v in parameters:
            use = Use(result, v.aval.size, inputs, _terms(equation, position))
            uses.setdefault(index[v], []).append(use)
    return uses


def _terms(equation: Equation, position: int) -> Any:
    """Return how many products an entry of a product sums."""
    shape, numbers = equation.invars[position].aval.shape, equation.params.get("dimension_numbers")
    if equation.primitive is primitives.dot_general_p:
        return math.prod(shape[axis] for axis in numbers[0][position])
    if equation.primitive is primitives.conv_general_dilated_p and position == 1:
        outputs = numbers.rhs_spec[0]
        return math.prod(n for axis, n in enumerate(shape) if axis != outputs)
    return 1


def _goes_back(program: Program, num_parameters: int, link: Link, end: Site) -> bool:
    """Return True if reverse mode goes through the link."""
    read = list(link.read)

    def back(parameters: Sequence[Array], values: Sequence[Array], cotangent: Array) -> Array:
        return link.pull_back(parameters, dict(zip(read, values, strict=True)))(cotangent)

    parameters = [v.aval for v in program.invars[:num_parameters]]
    try:
        jax.eval_shape(back, parameters, [v.aval for v in read], end.variable.aval)
    except (NotImplementedError, TypeError, ValueError):
        return False
    return True


def _float(size: Any) -> Any:
    """Return a size, which may be symbolic, as a number."""
    return float(size) if isinstance(size, int) else jnp.asarray(size, jnp.float32)
