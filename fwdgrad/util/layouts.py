"""Bodies of loops and branches, and how many of their operands are what, by version of JAX.

A layout that is not known is an error that names the versions that are. Checked with every version
of `TESTED_VERSIONS`: `.ci/run` runs the library's tests on the oldest and on the newest of them.
"""

from typing import Any, NamedTuple, NoReturn

import jax
from jax.extend import core as jex_core

TESTED_VERSIONS = ("0.10.0", "0.10.2", "0.11.2", "0.12.0.1")

JaxprEqn = Any  # jax.extend.core.JaxprEqn, or an `Equation` that stands for one


class Scan(NamedTuple):
    """The parts of a `scan`, whose operands are constants, carry and inputs, in this order.

    Attributes:
      body: a ClosedJaxpr, (constants, carry, slices of the inputs) -> (carry, slices of outputs).
      num_consts, num_carry: the numbers of constants and of carried operands.
      length, reverse, unroll: the arguments of `jax.lax.scan`.
    """

    body: Any
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


class While(NamedTuple):
    """The parts of a `while`, whose operands are the constants of both jaxprs, then the carry.

    Attributes:
      condition: a ClosedJaxpr, (its constants, carry) -> a boolean.
      body: a ClosedJaxpr, (its constants, carry) -> carry.
      num_condition_consts, num_body_consts: the numbers of constants of each.
    """

    condition: Any
    body: Any
    num_condition_consts: int
    num_body_consts: int


def raise_unknown_layout(equation: JaxprEqn, missing: str) -> NoReturn:
    """Raise NotImplementedError for an equation without a parameter that is expected."""
    raise NotImplementedError(
        f"JAX {jax.__version__} lays out the primitive {equation.primitive.name} in a way that "
        f"fwdgrad does not know: {missing} is not among its parameters "
        f"{sorted(equation.params)}. fwdgrad was tested with JAX {', '.join(TESTED_VERSIONS)}: "
        "install one of these, or a newer fwdgrad."
    )


def required_param(equation: JaxprEqn, name: str) -> Any:
    """Return a parameter of an equation; raise NotImplementedError if it has none of this name."""
    if name not in equation.params:
        raise_unknown_layout(equation, name)
    return equation.params[name]


def as_closed(jaxpr: Any) -> Any:
    """Return a ClosedJaxpr, given a ClosedJaxpr or a Jaxpr without constants."""
    if isinstance(jaxpr, jex_core.ClosedJaxpr):
        return jaxpr
    return jex_core.ClosedJaxpr(jaxpr, ())


def scan_parts(equation: JaxprEqn) -> Scan:
    """Return the body of a `scan` and the numbers of its constants and carried operands."""
    params = equation.params
    if "num_consts" in params:  # JAX 0.10
        counts = [params["num_consts"], params["num_carry"]]
    elif "ft_in" in params:  # JAX 0.11 and later: a tree of (constants, carry, inputs)
        counts = [len(part) for part in params["ft_in"].unpack()[:2]]
    else:
        raise_unknown_layout(equation, "num_consts or ft_in")
    rest = (params[name] for name in ("length", "reverse", "unroll"))
    return Scan(as_closed(required_param(equation, "jaxpr")), *counts, *rest)


def while_parts(equation: JaxprEqn) -> While:
    """Return condition and body of a `while`, and the numbers of their constants."""
    names = ("cond_jaxpr", "body_jaxpr", "cond_nconsts", "body_nconsts")
    condition, body, *counts = (required_param(equation, name) for name in names)
    return While(as_closed(condition), as_closed(body), *counts)


def cond_branches(equation: JaxprEqn) -> list[Any]:
    """Return the branches of a `cond`: ClosedJaxprs that take the operands after the index."""
    return [as_closed(branch) for branch in required_param(equation, "branches")]


def is_platform_dependent(equation: JaxprEqn) -> bool:
    """Return True for a `cond` with one branch a platform (`jax.lax.platform_dependent`)."""
    return equation.params.get("branches_platforms") is not None
