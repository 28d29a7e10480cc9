"""All rules of propagation: for each primitive one for each form of tangent that it can keep."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex_core

from fwdgrad.propagation.interpreter import Context, Rule
from fwdgrad.propagation.record import reason_of_loss
from fwdgrad.propagation.rules import (
    blocks,
    contractions,
    control_flow,
    joins,
    picks,
    structural,
)
from fwdgrad.tangents.base import StructuredTangent
from fwdgrad.tangents.blocks import Blocks
from fwdgrad.tangents.factored import Factored
from fwdgrad.tangents.forms import is_structured, number_of


class RulesOfPrimitive:
    """The rules of one primitive. A rule is given structured tangents of its own form alone.

    Where all structured operands are of one form, its rule is asked first. Where they are mixed,
    those of the form that comes last are kept, and the others are materialised.

    Attributes:
      by_form: form -> its rule; `StructuredTangent` stands for any mixture, None for dense ones.
    """

    def __init__(self, by_form: Mapping[type | None, Rule]):
        self.by_form = dict(by_form)

    @property
    def forms(self) -> set[type | None]:
        """The forms that have a rule."""
        return set(self.by_form)

    def __call__(
        self, context: Context, equation: Any, primals: list[Any], tangents: list[Any]
    ) -> Any:
        of_any = self.by_form.get(StructuredTangent)
        if of_any is not None:
            return of_any(context, equation, primals, tangents)
        present = {type(t) for t in tangents if is_structured(t)}
        kept = [form for form in self.by_form if form in present]
        if len(present) == 1 and kept:
            result = self.by_form[kept[0]](context, equation, primals, tangents)
            if result is not NotImplemented:
                return result
            kept = []
        # Mixed forms keep the last one; otherwise a rule for dense tangents may be left.
        rule = self.by_form.get(kept[-1] if kept else None)
        if rule is None:
            return NotImplemented
        reasons = [
            reason_of_loss(equation, tangents, t, has_rule=type(t) in self.by_form)
            if is_structured(t) and context.record is not None
            else ""
            for t in tangents
        ]
        tangents = [
            t if kept and type(t) is kept[-1] else context.written_out(equation, t, reason)
            for t, reason in zip(tangents, reasons, strict=True)
        ]
        return rule(context, equation, primals, tangents)


def _gathered() -> dict[str, RulesOfPrimitive]:
    of_factors = {
        name: rule
        for module in (contractions, structural, joins, picks)
        for name, rule in module.RULES.items()
    }
    tables: dict[type | None, Mapping[str, Rule]] = {
        Blocks: blocks.RULES,
        Factored: of_factors,
        StructuredTangent: {**structural.OF_ANY_FORM, **control_flow.RULES},
        None: contractions.OF_DENSE,
    }
    names = {name for table in tables.values() for name in table}
    return {
        name: RulesOfPrimitive({form: t[name] for form, t in tables.items() if name in t})
        for name in sorted(names)
    }


RULES: dict[str, RulesOfPrimitive] = _gathered()


def register_rule(
    primitive: jex_core.Primitive | str,
    rule: Rule,
    *,
    form: type[StructuredTangent] = Factored,
) -> None:
    """Give a primitive a rule that keeps a form of tangents, in the place of any that it has.

    Without a rule a tangent that meets the primitive is materialised, and goes through `jax.jvp`.
    The rule is called as

        rule(context, equation, primals, tangents) -> (outputs, tangents of the outputs)

    where some tangent is not zero. `primals` are the values of the operands; a tangent is None for
    zero, an array (K, *shape), or an instance of `form`, never of another. `outputs` are the values
    of the primitive, `equation.primitive.bind(*primals, **equation.params)`, as a list, and their
    tangents come in any of these forms. `NotImplemented` leaves the case to `jax.jvp`.

    Args:
      primitive: a primitive of JAX or of your own, or its name.
      rule: the function.
      form: the class of tangents that the rule keeps.

    Raises:
      TypeError: an argument is of a wrong kind.
      ValueError: while it is used, the rule returns another number of outputs, or a tangent of
        another shape.

    >>> import jax, jax.numpy as jnp
    >>> from jax.interpreters import ad
    >>> import fwdgrad
    >>> scale = jex_core.Primitive("scale_by_two")
    >>> _ = scale.def_impl(lambda x: 2 * x), scale.def_abstract_eval(lambda x: x)
    >>> ad.deflinear2(scale, lambda ct, x: [2 * ct])
    >>> def keep_factors(context, equation, primals, tangents):
    ...     (v,) = tangents
    ...     if not isinstance(v, fwdgrad.Factored):
    ...         return NotImplemented
    ...     return [equation.primitive.bind(*primals)], [v.replace(2 * v.left, v.right)]
    >>> fwdgrad.register_rule(scale, keep_factors)
    >>> def loss(w, x):
    ...     return jnp.sum(scale.bind(x @ w))
    >>> value_and_grad = fwdgrad.forward_value_and_grad(loss, tangents=fwdgrad.LowRank())
    >>> value_and_grad(jax.random.key(0), jnp.ones((3, 2)), jnp.ones((4, 3)))[0].item()
    48.0
    """
    name = primitive if isinstance(primitive, str) else getattr(primitive, "name", None)
    if not isinstance(name, str):
        raise TypeError(f"primitive must be a primitive of JAX or its name; found {primitive!r}.")
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
    RULES.setdefault(name, RulesOfPrimitive({})).by_form[form] = _checked(name, rule)


def _checked(name: str, rule: Rule) -> Rule:
    """Return the rule of a user, with its results checked."""

    def checked(context: Context, equation: Any, primals: list[Any], tangents: list[Any]) -> Any:
        result = rule(context, equation, primals, tangents)
        if result is NotImplemented:
            return result
        number = next(number_of(t) for t in tangents if t is not None)
        try:
            outputs, pushed = (list(part) for part in result)
        except (TypeError, ValueError):
            raise ValueError(
                f"the rule that was registered for {name} must return a pair of lists, the outputs "
                f"and their tangents; found {type(result).__name__}."
            ) from None
        _check("outputs", name, outputs, [v.aval.shape for v in equation.outvars])
        _check("tangents", name, pushed, [(number, *v.aval.shape) for v in equation.outvars])
        return outputs, pushed

    return checked


def _check(kind: str, name: str, found: Sequence[Any], expected: Sequence[tuple[int, ...]]) -> None:
    shapes = [
        (number_of(x), *x.shape) if is_structured(x) else None if x is None else jnp.shape(x)
        for x in found
    ]
    fits = len(shapes) == len(expected) and all(
        s == e or (s is None and kind == "tangents") for s, e in zip(shapes, expected, strict=True)
    )
    if not fits:
        raise ValueError(
            f"the rule that was registered for {name} returned {kind} of shapes {shapes}; they "
            f"must be {list(expected)}."
        )
