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
from fwdgrad.perturbation.slopes import has_slopes_below_one
from fwdgrad.propagation.facts import fact_of
from fwdgrad.propagation.jaxprs import evaluate
from fwdgrad.util.jax_internals import Equation, Program, is_inexact
from fwdgrad.util.sharding import varying_as
from fwdgrad.util.trees import Array, accumulation_dtype


@dataclass(frozen=True)
class Use:
    """The product of a parameter with what comes from the site.

    Attributes:
      outputs, factor: the numbers of entries of the result, and of the factor that is made of the
        parameter, such as a slice of it.
      terms: the number of products whose sum is an entry of the result.
      reads: the largest number of entries of the result that an entry of the other factor has a
        part in by one output channel: the taps of a convolution of stride 1, 1 for a matrix.
    """

    outputs: Any
    factor: Any
    terms: Any
    reads: int

    @property
    def positions(self) -> Any:
        """The number of places at which the parameter is used, such as pixels of a convolution."""
        return _float(self.outputs * self.terms) / _float(self.factor or 1)


@dataclass(frozen=True)
class Link:
    """The way from the noise of a site to the value of the next one.

    Attributes:
      start: the variable at which the noise enters.
      equations: the operations before the next layer.
      following: the next site.
      layer: the layer, a function of parameters and values.
      entering: the variables that come from `start`, or are it, and that the layer reads.
      read: the variables that operations and layer read, `start` included.
      uses: for each parameter of the layer that is multiplied by what comes from `start`, its uses;
        by its index. The others, such as a bias, have no part in J.
      is_plain: True if J(B) is known to be no larger than that of the layer alone: the layer uses
        one parameter once, and the operations select entries or have slopes of about one at most.
    """

    start: Variable
    equations: Sequence[Equation]
    following: int
    layer: Callable[[Sequence[Array], dict[Variable, Any]], Array]
    entering: Sequence[Variable]
    read: frozenset[Variable]
    uses: Mapping[int, Sequence[Use]]
    is_plain: bool

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

    def with_and_without_operations(
        self,
        parameters: Sequence[Array],
        others: Sequence[Array],
        values: Mapping[Variable, Any],
        cotangent: Array,
    ) -> tuple[Array, Array]:
        """Return ‖D m‖² and ‖m‖², for m = (J_layer(B) − J_layer(B'))ᵀ c.

        D pulls back through the operations before the layer. Entries of m that it makes zero are
        left out, so that the two are equal where the operations only select entries.

        Args:
          parameters, others: all of the loss, with B or B' in the place of those in `uses`.
          values: those of `read`.
          cotangent: c.
        """

        def before(start: Array) -> list[Array]:
            reached = {**values, self.start: start}
            evaluate(self.equations, reached)
            return [reached[v] for v in self.entering]

        def alone(parameters: Sequence[Array]) -> list[Array]:
            def run(entering: Sequence[Array]) -> Array:
                known = zip(self.entering, entering, strict=True)
                return self.layer(parameters, {**values, **dict(known)})

            value, pull_back = jax.vjp(run, at_layer)
            return pull_back(cotangent.astype(value.dtype))[0]

        start = values[self.start]
        at_layer, pull_back = jax.vjp(before, start)
        along = varying_as(jax.random.normal(jax.random.key(0), start.shape, start.dtype), start)
        _, reached = jax.jvp(before, (start,), (along,))
        change = jax.tree.map(jnp.subtract, alone(parameters), alone(others))
        kept = [jnp.where(x != 0, m, 0) for x, m in zip(reached, change, strict=True)]
        return _squares(pull_back(change)), _squares(kept)


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
        found = [start, *(v for e in equations for v in e.outvars)]
        entering = [v for v in found if v in end.read and is_inexact(v)]
        outside = frozenset(read - made | {start})
        is_plain = _is_plain(program, start, equations, end, uses)
        return Link(start, equations, following, layer, entering, outside, uses, is_plain)
    return None


def _is_plain(
    program: Program,
    start: Variable,
    equations: Sequence[Equation],
    end: Site,
    uses: Mapping[int, Sequence[Use]],
) -> bool:
    """Return True if a link is no larger than its layer, of one parameter, used once."""
    if [len(of_parameter) for of_parameter in uses.values()] != [1]:
        return False
    layer = [program.eqns[i] for i in end.equations]
    return has_slopes_below_one([*equations, *layer], [start], len(equations))


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
        sizes = equation.outvars[0].aval.size, equation.invars[position].aval.size
        use = Use(*sizes, _terms(equation, position), _reads(equation, position))
        for v in parameters:
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


def _reads(equation: Equation, position: int) -> int:
    """Return how many entries of a channel of a product an entry of the data has a part in."""
    if equation.primitive is not primitives.conv_general_dilated_p or position == 0:
        return 1
    options = equation.params
    taps = [equation.invars[1].aval.shape[i] for i in options["dimension_numbers"].rhs_spec[2:]]
    apart = zip(taps, options["window_strides"], options["rhs_dilation"], strict=True)
    # Taps that are d apart meet outputs that are s apart at every (s / gcd(s, d))-th tap.
    return math.prod(-(-n // (s // math.gcd(s, d))) for n, s, d in apart)


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


def _squares(arrays: Sequence[Array]) -> Array:
    wide = (x.astype(accumulation_dtype(x.dtype)) for x in arrays)
    return sum((jnp.sum(jnp.square(x)) for x in wide), jnp.zeros(()))


def _float(size: Any) -> Any:
    """Return a size, which may be symbolic, as a number."""
    return float(size) if isinstance(size, int) else jnp.asarray(size, jnp.float32)
