"""Sites: the pre-activations of a loss, at which activity perturbation puts noise in.

In z = x W + b the gradient by W and b is the gradient by z, pulled back through this one line. So
it is enough to perturb z, which has fewer entries than W, with independent noise for each example.
`find_sites` finds such values in the jaxpr of one example's loss, of a model of any library.

A variable is *linear* if it is a parameter, or the result of an operation that is linear in linear
variables with all else held: a product with another value, a sum, a rearrangement. A linear value
is a *site* if another operation reads it, such as an activation, or if it is read more than once.
Noise enters there; where pooling follows, it may enter the pooled value instead, which has fewer
entries (`fwdgrad.perturbation.post_activation`). The equations that make the site of its parameters
are its *layer*: the estimate is pulled back through them.

A parameter that is only rearranged is linear, and holds no data. If an operation is not linear in
it (sin W, Σ W², a loop), noise enters the parameter itself, for this use, the same for all
examples.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex_core
from jax.extend.core import primitives

from fwdgrad.propagation.facts import fact_of, linear_operands
from fwdgrad.propagation.jaxprs import evaluate, variables
from fwdgrad.util.jax_internals import Equation, Program, inner_jaxprs, is_opaque
from fwdgrad.util.source_info import place

Variable = Any  # jax.extend.core.Var


class Site(NamedTuple):
    """A value at which noise is put in.

    Attributes:
      variable: the value.
      equations: its layer: the indices of the equations that make it of parameters, in order.
      parameters: the parameters that the layer reads.
      read: the other variables that the layer reads.
      per_example: True if the value depends on the example.
      own_noise: True if each example has its own noise, as such a value has.
      place: the place in the user's code that makes the value.
      operand: (index of the equation, position) of the one reader with the noise, or None if all
        readers have it.
      instead_of: of a parameter that has the noise of its layer's value, that value
        (`fwdgrad.perturbation.kernel_noise`).
      is_last: True if only the loss function lies between the value and the loss: no site that is
        not last, no product with a value of another parameter, and nothing that may hold layers,
        such as a loop.
    """

    variable: Variable
    equations: tuple[int, ...]
    parameters: frozenset[Variable]
    read: frozenset[Variable]
    per_example: bool
    own_noise: bool
    place: str
    operand: tuple[int, int] | None
    is_last: bool = True
    instead_of: Variable | None = None


class Plan(NamedTuple):
    """The sites of a loss, as `find_sites` returns them.

    Attributes:
      sites: in the order in which their values are made or read.
      head: the indices of the equations that the noise of a last site reaches on its way to the
        loss: from the last uses of parameters on, with no parameter in them.
      varying: the variables that depend on the example.
      with_parameters: the variables that are parameters, or linear in them and no site.
      needed: of each equation, whether a tangent of its outputs goes on to the loss.
    """

    sites: list[Site]
    head: list[int]
    varying: set[Variable]
    with_parameters: set[Variable]
    needed: list[bool]


class _Linear(NamedTuple):
    """A variable that is linear in parameters; the fields are those of `Site`."""

    equations: frozenset[int]
    parameters: frozenset[Variable]
    read: frozenset[Variable]
    has_data: bool


def find_sites(program: Program, num_parameters: int) -> Plan:
    """Return the sites of a program whose first inputs are parameters and first output the loss.

    Args:
      program: of one example's loss, inlined (`fwdgrad.propagation.jaxprs`).
      num_parameters: how many of its inputs are parameters; the others are the example.
    """
    return _Search(program, num_parameters).plan()


class _Search:
    def __init__(self, program: Program, num_parameters: int):
        self.program = program
        self.linear: dict[Variable, _Linear] = {
            v: _Linear(frozenset(), frozenset([v]), frozenset(), False)
            for v in program.invars[:num_parameters]
        }
        self.varying: set[Variable] = set(program.invars[num_parameters:])
        self.depending: set[Variable] = set(self.linear)  # on parameters
        self.sites: list[Site] = []
        # The sites whose noise reaches a variable, and each equation.
        self.reached: dict[Variable, frozenset[int]] = {}
        self.equations_reached: list[frozenset[int]] = []
        self.loss = program.outvars[0]
        # Noise that does not reach the loss, as where only aux is computed, would be for nothing.
        self.needed = _reaching_the_loss(program)
        self.readers: dict[Variable, int] = {}
        reading = [e for e, needed in zip(program.eqns, self.needed, strict=True) if needed]
        for v in [*(v for e in reading for v in e.reads), *variables([self.loss])]:
            self.readers[v] = self.readers.get(v, 0) + 1

    def plan(self) -> Plan:
        if not isinstance(self.loss, jex_core.Literal) and self.loss in self.linear:
            raise ValueError("fun returns one of params as it is; multiply it by something.")
        for index, equation in enumerate(self.program.eqns):
            self._visit(index, equation)
        for i, site in enumerate(self.sites):
            follows = [
                e for e, reached in zip(self.program.eqns, self.equations_reached, strict=True)
                if i in reached
            ]  # fmt: skip
            if any(self._is_more_than_a_loss(e) or self._is_gated(i, e) for e in follows):
                self.sites[i] = site._replace(is_last=False)
        self._exclude_joined()
        last = frozenset(i for i, site in enumerate(self.sites) if site.is_last)
        head = [i for i, reached in enumerate(self.equations_reached) if reached & last]
        return Plan(self.sites, head, self.varying, set(self.linear), self.needed)

    def _exclude_joined(self) -> None:
        """Mark a last site as not last if another site joins its way to the loss.

        No noise enters what the last sites reach: the head is differentiated as a whole.
        """
        joined = True
        while joined:
            joined = False
            others = [site.operand[0] for site in self.sites if site.operand and not site.is_last]
            for i in frozenset().union(*(self.equations_reached[index] for index in others)):
                joined |= self.sites[i].is_last
                self.sites[i] = self.sites[i]._replace(is_last=False)

    def _visit(self, index: int, equation: Equation) -> None:
        read = equation.reads
        if any(v in self.varying for v in read):
            self.varying.update(equation.outvars)
        if any(v in self.depending for v in read):
            self.depending.update(equation.outvars)
        if not self.needed[index]:
            self.equations_reached.append(frozenset())
            return
        operands = [
            None if isinstance(v, jex_core.Literal) else self.linear.get(v) for v in equation.invars
        ]
        kept = linear_operands(equation, [x and x.has_data for x in operands])
        if kept and self._meets_itself(self._joined(index, kept)):
            kept = []  # w·w: it is linear in w only with the other w held
        noise = self._reaching(read)
        for position, operand in enumerate(operands):
            if operand is not None and position not in kept:
                v = equation.invars[position]
                noise |= self._add_site(v, operand, (index, position))
        self.equations_reached.append(noise)
        for v in equation.outvars:
            self.reached[v] = noise
            if kept:
                self._add_linear(v, self._joined(index, kept))

    def _is_more_than_a_loss(self, equation: Equation) -> bool:
        """Return True if an equation may hold layers: a loop, a branch, a product with weights."""
        if fact_of(equation.primitive).contracts:
            return any(v not in self.varying for v in equation.reads)
        bodies = inner_jaxprs(equation)
        if is_opaque(equation) or (bodies and equation.function is None):
            return True
        flattened = (e for body in bodies for e in _flattened(body))
        return any(fact_of(e.primitive).contracts or is_opaque(e) for e in flattened)

    def _is_gated(self, i: int, equation: Equation) -> bool:
        """Return True if the noise of a site is multiplied by a value of other parameters."""
        if not fact_of(equation.primitive).multiplies:
            return False
        others = (v for v in equation.reads if i not in self._reaching([v]))
        return any(v in self.depending for v in others)

    def _meets_itself(self, linear: "_Linear") -> bool:
        """Return True if a layer would both hold a value and make it of parameters."""
        made = {v for i in linear.equations for v in self.program.eqns[i].outvars}
        return bool(linear.read & (linear.parameters | made))

    def _reaching(self, read: Iterable[Variable]) -> frozenset[int]:
        return frozenset().union(*(self.reached.get(v, frozenset()) for v in read))

    def _joined(self, index: int, kept: Sequence[int]) -> _Linear:
        """Return the linearity of the outputs of an equation, linear in the operands `kept`."""
        equation = self.program.eqns[index]
        known = [self.linear[equation.invars[i]] for i in kept]
        others = [x for i, x in enumerate(equation.invars) if i not in kept]
        return _Linear(
            frozenset([index]).union(*(x.equations for x in known)),
            frozenset().union(*(x.parameters for x in known)),
            frozenset(v for v in others if not isinstance(v, jex_core.Literal)).union(
                *(x.read for x in known)
            ),
            any(v in self.varying for v in equation.outvars),
        )

    def _add_linear(self, v: Variable, linear: _Linear) -> None:
        """Record that a value is linear; one that is read twice is a site."""
        if v is self.loss or (linear.has_data and self.readers.get(v, 0) > 1):
            self.reached[v] |= self._add_site(v, linear, None)
        else:
            self.linear[v] = linear

    def _add_site(
        self, v: Variable, linear: _Linear, operand: tuple[int, int] | None
    ) -> frozenset[int]:
        """Add a site; return the set of its index, which reaches all readers of the value."""
        for i in self._reaching([v]):
            self.sites[i] = self.sites[i]._replace(is_last=False)
        equations = tuple(sorted(linear.equations))
        index = equations[-1] if equations or operand is None else operand[0]
        at = place(self.program.eqns[index])
        per_example = linear.has_data
        fields = (linear.parameters, linear.read, per_example, per_example, at, operand)
        self.sites.append(Site(v, equations, *fields))
        return frozenset([len(self.sites) - 1])


def _flattened(jaxpr: Any) -> Iterable[Any]:
    """Yield the equations of a jaxpr and of its bodies."""
    for equation in jaxpr.eqns:
        yield equation
        for body in inner_jaxprs(equation):
            yield from _flattened(body)


def _reaching_the_loss(program: Program) -> list[bool]:
    """Return for each equation if a tangent of its outputs goes on to the loss."""
    needed = set(variables(program.outvars[:1]))
    reaching = []
    for equation in reversed(program.eqns):
        passes = equation.is_inexact and equation.primitive is not primitives.stop_gradient_p
        reaches = passes and not needed.isdisjoint(equation.outvars)
        reaching.append(reaches)
        if reaches:
            needed.update(equation.reads)
    return reaching[::-1]


def layer_of_site(
    program: Program, site: Site
) -> Callable[[Sequence[Any], dict[Variable, Any]], Any]:
    """Return the layer of a site as a function of the parameters and of its other variables."""
    equations = [program.eqns[i] for i in site.equations]

    def run(parameters: Sequence[Any], others: dict[Variable, Any]) -> Any:
        values = dict(zip(program.invars[: len(parameters)], parameters, strict=True))
        values.update((v, others[v]) for v in site.read)  # parameters, too, that are held
        evaluate(equations, values)
        return values[site.variable]

    return run
