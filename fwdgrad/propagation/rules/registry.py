"""The registry of rules: one for each primitive and each form of tangent that it keeps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex_core

from fwdgrad.propagation.facts import FACTS, Fact, Linear, axes_of_entries, fact_of
from fwdgrad.propagation.interpreter import RULES, Context, Rule
from fwdgrad.propagation.rules import (
    blocks,
    control_flow,
    convolutions,
    picks,
    products,
    structural,
)
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import count_tangents
from fwdgrad.util.jax_internals import is_jax_primitive, is_published


class RulesOfPrimitive:
    """The rules of one primitive, each of which gets structured tangents of its own form alone.

    If all structured operands have one form, the rule of that form comes first. If forms are mixed,
    tangents of the form whose rule stands last in `by_form` are kept, and the others materialised.

    Attributes:
      by_form: form -> its rule; `StructuredTangent` stands for any mixture, None for dense ones.
      takes_dense: True if a rule is for dense tangents too.
    """

    def __init__(self, by_form: Mapping[type | None, Rule]):
        self.by_form = dict(by_form)
        self.takes_dense = None in by_form or StructuredTangent in by_form

    def __call__(
        self, context: Context, equation: Any, primals: list[Any], tangents: list[Any]
    ) -> Any:
        present = {type(t) for t in tangents if isinstance(t, StructuredTangent)}
        kept = [form for form in self.by_form if form in present]
        if len(present) == 1 and kept:
            result = self.by_form[kept[0]](context, equation, primals, tangents)
            if result is not NotImplemented:
                return result
            kept = []
        of_any = self.by_form.get(StructuredTangent)
        if of_any is not None:
            return of_any(context, equation, primals, tangents)
        # Mixed forms keep the last one; otherwise a rule for dense tangents may be left.
        rule = self.by_form.get(kept[-1] if kept else None)
        if rule is None:
            return NotImplemented

        def materialized(t: Any) -> Any:
            if not isinstance(t, StructuredTangent) or (kept and type(t) is kept[-1]):
                return t
            return context.materialize_operand(equation, tangents, t)

        return rule(context, equation, primals, [*map(materialized, tangents)])


def _built_in() -> dict[Any, dict[type | None, Rule]]:
    tables: dict[type | None, Mapping[str, Rule]] = {
        Blocks: blocks.RULES,
        Factored: {**products.RULES, **convolutions.RULES, **structural.RULES, **picks.RULES},
        StructuredTangent: {**structural.OF_ANY_FORM, **control_flow.RULES},
        None: products.OF_DENSE,
    }
    names = {name for table in tables.values() for name in table}
    return {
        name: {form: table[name] for form, table in tables.items() if name in table}
        for name in sorted(names)
    }


_BUILT_IN = _built_in()
RULES.update({name: RulesOfPrimitive(by_form) for name, by_form in _BUILT_IN.items()})

# Registrations that were not taken away, in order, by the keys of `RULES`.
_RULES: dict[Any, list[tuple[type, Rule]]] = {}
_FACTS: dict[Any, list[Fact]] = {}


def register_rule(
    primitive: jex_core.Primitive | str,
    rule: Rule,
    *,
    form: type[StructuredTangent] = Factored,
) -> Callable[[], None]:
    """Give a primitive a rule that keeps a form of tangents; it is asked before any other.

    Without a rule a tangent that meets the primitive is materialised, and goes through `jax.jvp`.
    The rule is called as

        rule(context, equation, primals, tangents) -> (outputs, tangents of the outputs)

    where some operand has a tangent of `form`. `primals` are the values of the operands; a tangent
    is None for zero, an array (K, *shape), or an instance of `form`, never of another form.
    `outputs` are the values of the primitive, `equation.primitive.bind(*primals,
    **equation.params)`, as a list, and their tangents come in any of these forms. `NotImplemented`
    leaves the case to the rule that the primitive had before, or to `jax.jvp`.

    The rule holds for all evaluations of the process that begin later. A function that `jax.jit`
    has compiled keeps the rules with which it was traced.

    Args:
      primitive: a primitive of JAX or of your own; or the name of one of JAX.
      rule: the function.
      form: the class of tangents that the rule keeps.

    Returns:
      A function that takes this rule away again, whatever was registered since.

    Raises:
      TypeError: an argument is of a wrong kind.
      ValueError: no primitive of JAX has the name; or, while the rule is used, it returns another
        number of outputs, or an array or a tangent of another shape or dtype.

    >>> import jax, jax.numpy as jnp
    >>> from jax.interpreters import ad
    >>> import fwdgrad
    >>> scale = jex_core.Primitive("scale_by_two")
    >>> _ = scale.def_impl(lambda x: 2 * x), scale.def_abstract_eval(lambda x: x)
    >>> ad.deflinear2(scale, lambda ct, x: [2 * ct])
    >>> def keep_factors(context, equation, primals, tangents):
    ...     (v,) = tangents  # with one operand it is of the form
    ...     return [equation.primitive.bind(*primals)], [v.replace(2 * v.left, v.right)]
    >>> undo = fwdgrad.register_rule(scale, keep_factors)
    >>> def loss(w, x):
    ...     return jnp.sum(scale.bind(x @ w))
    >>> value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    >>> value_and_grad(jax.random.key(0), jnp.ones((3, 2)), jnp.ones((4, 3)))[0].item()
    48.0
    >>> undo()
    """
    if not isinstance(primitive, (str, jex_core.Primitive)):
        raise TypeError(
            f"primitive must be a primitive, or the name of one of JAX; found {primitive!r}."
        )
    if isinstance(primitive, str) and not (primitive in _BUILT_IN or is_published(primitive)):
        raise ValueError(
            f"primitive must be the name of one of JAX; found {primitive!r}, which is not known "
            "here. Give the primitive itself."
        )
    if not callable(rule):
        raise TypeError(
            "rule must be a function rule(context, equation, primals, tangents); found "
            f"{type(rule).__name__}."
        )
    if not (isinstance(form, type) and issubclass(form, StructuredTangent)):
        raise TypeError(
            "form must be a class of structured tangents, such as fwdgrad.Factored; found "
            f"{form!r}."
        )
    return _add(_RULES, _key_of(primitive), (form, rule))


def register_facts(
    primitive: jex_core.Primitive, *, elementwise: bool = False, linear: bool = False
) -> Callable[[], None]:
    """State facts about a primitive of your own, as they are known of the primitives of JAX.

    The facts are not checked: with a wrong fact estimates are wrong.

    Args:
      primitive: a primitive of your own.
      elementwise: each entry of the outputs depends on the same entry of the operands alone. Then
        block-sparse tangents are kept, and activity perturbation leaves out entries of slope zero.
      linear: the outputs are linear in the first operand, with the others held. Then activity
        perturbation puts the noise of a layer after the primitive; and if the primitive is
        elementwise and has a rule for `Factored`, the tangent of a parameter in it is low-rank.

    Returns:
      A function that takes the facts away again.

    Raises:
      TypeError: `primitive` is not a primitive, or is one of JAX.

    >>> import jax, jax.numpy as jnp
    >>> from jax.interpreters import ad, mlir
    >>> import fwdgrad
    >>> cube = jex_core.Primitive("cube")
    >>> _ = cube.def_impl(lambda x: x**3), cube.def_abstract_eval(lambda x: x)
    >>> ad.defjvp(cube, lambda t, x: 3 * x**2 * t)
    >>> mlir.register_lowering(cube, mlir.lower_fun(lambda x: x**3, multiple_results=False))
    >>> undo = fwdgrad.register_facts(cube, elementwise=True)
    >>> found = fwdgrad.explain(
    ...     lambda w, x: jnp.sum(cube.bind(x @ w) @ w.T), jnp.ones((4, 6)), jnp.ones((2, 4)),
    ...     tangents=fwdgrad.BlockSparse(), num_tangents=2,
    ... )
    >>> [use.partition(" at ")[0] for use in found.leaves[0].used]
    ['dot_general', 'cube', 'transpose', 'dot_general']
    >>> undo()
    """
    if not isinstance(primitive, jex_core.Primitive) or _key_of(primitive) is not primitive:
        raise TypeError(f"primitive must be a primitive of your own; found {primitive!r}.")
    axes = axes_of_entries if elementwise else None
    return _add(_FACTS, primitive, Fact(elementwise, Linear.FIRST if linear else None, axes=axes))


def _key_of(primitive: jex_core.Primitive | str) -> Any:
    """Return the key of a primitive in both tables: a name, or a user's own primitive itself."""
    if isinstance(primitive, str) or not is_jax_primitive(primitive):
        return primitive
    return primitive.name


def _add(registered: dict[Any, list[Any]], key: Any, entry: Any) -> Callable[[], None]:
    """Add a registration, and return a function that takes away this one and no other."""
    registered[key] = [*registered.get(key, ()), entry]
    _rebuild(key)

    def undo() -> None:
        registered[key] = [other for other in registered[key] if other is not entry]
        _rebuild(key)

    return undo


def _rebuild(key: Any) -> None:
    """Set the facts and rules of a primitive: the built-in ones, then the registered ones."""
    by_form = dict(_BUILT_IN.get(key, {}))
    if facts := _FACTS.get(key):
        FACTS[key] = facts[-1]
        if facts[-1].elementwise:
            by_form[Blocks] = blocks.KEEP_BLOCKS
    elif key in _FACTS:
        FACTS.pop(key, None)
    fact_of.cache_clear()
    for form, rule in _RULES.get(key, ()):
        by_form[form] = _checked(getattr(key, "name", key), rule, by_form.get(form))
    # A new object, since evaluations that have begun hold the one before it.
    RULES[key] = RulesOfPrimitive(by_form)


def _checked(name: str, rule: Rule, before: Rule | None) -> Rule:
    """Return a user's rule with validated results, and the previous rule as its fallback."""

    def checked(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
        result = rule(context, equation, primals, tangents)
        if result is NotImplemented:
            if before is None:
                return NotImplemented
            return before(context, equation, primals, tangents)
        number = next(count_tangents(t) for t in tangents if t is not None)
        try:
            outputs, pushed = (list(part) for part in result)
        except (TypeError, ValueError):
            raise ValueError(
                f"the rule that was registered for {name} must return a pair of lists, the outputs "
                f"and their tangents; found {type(result).__name__}."
            ) from None
        types = [(v.aval.shape, v.aval.dtype) for v in equation.outvars]
        _check("outputs", name, outputs, types)
        _check("tangents", name, pushed, [((number, *shape), dtype) for shape, dtype in types])
        return outputs, pushed

    return checked


def _check(kind: str, name: str, found: Sequence[Any], expected: Sequence[Any]) -> None:
    """Raise ValueError unless shapes and dtypes are as expected; a tangent may be None."""
    types = [None if x is None else (_shape(x), jnp.result_type(x.dtype)) for x in found]
    fits = len(types) == len(expected) and all(
        t == e or (t is None and kind == "tangents") for t, e in zip(types, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"the rule that was registered for {name} returned {kind} {_listed(types)}; they must "
            f"be {_listed(expected)}."
        )


def _shape(x: Any) -> tuple[int, ...]:
    return (count_tangents(x), *x.shape) if isinstance(x, StructuredTangent) else jnp.shape(x)


def _listed(types: Sequence[Any]) -> str:
    return ", ".join("None" if t is None else f"{t[1]}{list(t[0])}" for t in types) or "none"
