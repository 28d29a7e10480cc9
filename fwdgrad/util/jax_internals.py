"""How JAX lays out its equations: all that differs, or may differ, from one version to the next.

A jaxpr's primitives keep their meaning for years, but where an equation keeps its bodies, and how
many of its operands a loop carries, has changed. Each question that the library asks of an equation
is one function here; a layout that is not known is an error that names the versions that are.

Checked with every version of `TESTED_VERSIONS`: `.ci/run` runs the library's tests on the oldest
and on the newest of them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
from jax.extend import core as jex_core
from jax.extend.core import primitives

TESTED_VERSIONS = ("0.10.0", "0.10.2", "0.11.2", "0.12.0.1")

Equation = Any  # jax.extend.core.JaxprEqn

# Primitives that do nothing but call a jaxpr, by name, and the parameter that holds it. JAX 0.11
# has `eval_jaxpr` in the place of `call` and `closed_call`.
_CALLS = {
    primitives.jit_p.name: "jaxpr",
    primitives.remat_p.name: "jaxpr",
    primitives.custom_vjp_call_p.name: "call_jaxpr",
    "call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "program_order": "call_jaxpr",
}
# An object that has methods for each transformation, with which JAX 0.11 and later make
# `custom_vjp` and `remat` if `jax_custom_vjp3` and `jax_remat3` are set.
_OBJECT = "call_hi_primitive"
_CUSTOM_VJP_OBJECT = "CustomVJPTraced"
_CALLING_OBJECTS = (_CUSTOM_VJP_OBJECT, "RematTraced", "OptRemat")

CALL_NAMES = (*_CALLS, _OBJECT)

# The jaxprs in their parameters are of another language: the body of a kernel reads and writes
# memory that the loss does not see.
_KERNELS = ("pallas_call", "core_map", "mpmd_map")


class Scan(NamedTuple):
    """The parts of a `scan`: its operands are constants, then carry, then inputs, in this order.

    Attributes:
      body: a ClosedJaxpr, (constants, carry, slices of the inputs) -> (carry, slices of outputs).
      num_consts, num_carry: how many operands are constants, and how many are carried.
      length, reverse, unroll: as `jax.lax.scan` takes them.
    """

    body: Any
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


class While(NamedTuple):
    """The parts of a `while`: its operands are both bodies' constants, then the carry.

    Attributes:
      condition, body: ClosedJaxprs, (own constants, carry) -> a boolean, or the carry.
      num_condition_consts, num_body_consts: how many operands are constants of each.
    """

    condition: Any
    body: Any
    num_condition_consts: int
    num_body_consts: int


def raise_unknown_layout(equation: Equation, missing: str) -> NoReturn:
    """Raise the NotImplementedError for an equation that is laid out in an unknown way."""
    raise NotImplementedError(
        f"JAX {jax.__version__} lays out the primitive {equation.primitive.name} in a way that "
        f"fwdgrad does not know: {missing} is not among its parameters "
        f"{sorted(equation.params)}. fwdgrad was tested with JAX {', '.join(TESTED_VERSIONS)}: "
        "install one of these, or a newer fwdgrad."
    )


def as_closed(jaxpr: Any) -> Any:
    """Return a ClosedJaxpr, from one or from a Jaxpr without constants."""
    if isinstance(jaxpr, jex_core.ClosedJaxpr):
        return jaxpr
    return jex_core.ClosedJaxpr(jaxpr, ())


def scan_parts(equation: Equation) -> Scan:
    """Return the body of a `scan`, and which of its operands are what."""
    params = equation.params
    if "num_consts" in params:  # JAX 0.10
        numbers = [params["num_consts"], params["num_carry"]]
    elif "ft_in" in params:  # JAX 0.11 and later: a tree of (constants, carry, inputs)
        numbers = [len(part) for part in params["ft_in"].unpack()[:2]]
    else:
        raise_unknown_layout(equation, "num_consts or ft_in")
    if "jaxpr" not in params:
        raise_unknown_layout(equation, "jaxpr")
    rest = (params[name] for name in ("length", "reverse", "unroll"))
    return Scan(as_closed(params["jaxpr"]), *numbers, *rest)


def while_parts(equation: Equation) -> While:
    """Return the bodies of a `while`, and how many operands are their constants."""
    names = ("cond_jaxpr", "body_jaxpr", "cond_nconsts", "body_nconsts")
    if missing := [name for name in names if name not in equation.params]:
        raise_unknown_layout(equation, missing[0])
    condition, body, *numbers = (equation.params[name] for name in names)
    return While(as_closed(condition), as_closed(body), *numbers)


def cond_branches(equation: Equation) -> list[Any]:
    """Return the branches of a `cond`, ClosedJaxprs of the operands after the index."""
    if "branches" not in equation.params:
        raise_unknown_layout(equation, "branches")
    return [as_closed(branch) for branch in equation.params["branches"]]


def is_platform_dependent(equation: Equation) -> bool:
    """Whether a `cond` has one branch for each platform (`jax.lax.platform_dependent`)."""
    return equation.params.get("branches_platforms") is not None


def called_jaxpr(equation: Equation) -> Any | None:
    """Return the ClosedJaxpr that an equation calls and does nothing else, or None.

    A call of a `custom_vjp` function is one too, of the function that it differentiates; that of a
    `custom_jvp` function is not, since its rule is not what the function computes.
    """
    name = equation.primitive.name
    if name == _OBJECT:
        made = equation.params["_prim"]
        return _expanded(made) if type(made).__name__ in _CALLING_OBJECTS else None
    if name not in _CALLS:
        return None
    if _CALLS[name] not in equation.params:
        raise_unknown_layout(equation, _CALLS[name])
    return as_closed(equation.params[_CALLS[name]])


@functools.lru_cache(maxsize=256)
def _expanded(made: Any) -> Any:
    """Return the ClosedJaxpr that a primitive object stands for."""

    def run(*flat: Any) -> Any:
        return jax.tree.leaves(made.expand(*jax.tree.unflatten(made.in_tree, flat)))

    return jax.make_jaxpr(run)(*made.in_avals_flat)


def is_custom_vjp(equation: Equation) -> bool:
    """Whether an equation calls a function that is defined by `jax.custom_vjp`."""
    if equation.primitive.name == _OBJECT:
        return type(equation.params["_prim"]).__name__ == _CUSTOM_VJP_OBJECT
    return equation.primitive is primitives.custom_vjp_call_p


def function_name(equation: Equation) -> str:
    """Return name and source line of the function of a custom_vjp or custom_jvp call."""
    if equation.primitive.name == _OBJECT:
        jaxpr = equation.params["_prim"].traced.jaxpr
    else:
        jaxpr = equation.params["call_jaxpr"]
    info = getattr(as_closed(jaxpr).jaxpr, "debug_info", None)
    return getattr(info, "func_src_info", None) or "a function without a name"


def custom_jvp_body(equation: Equation) -> Any | None:
    """Return the ClosedJaxpr of the function of a custom_jvp call, or None of another equation."""
    if equation.primitive is not primitives.custom_jvp_call_p:
        return None
    if "call_jaxpr" not in equation.params:
        raise_unknown_layout(equation, "call_jaxpr")
    return as_closed(equation.params["call_jaxpr"])


def inner_jaxprs(equation: Equation) -> Sequence[Any]:
    """Return the Jaxprs of what an equation calls, loops over or branches to; not of kernels."""
    if is_kernel(equation):
        return ()
    if equation.primitive.name == _OBJECT:
        body = called_jaxpr(equation)
        return () if body is None else (body.jaxpr,)
    return tuple(jex_core.jaxprs_in_params(equation.params))


def is_opaque(equation: Equation) -> bool:
    """Whether an equation computes by a program that is no jaxpr of the loss's own language."""
    is_object = equation.primitive.name == _OBJECT
    return is_kernel(equation) or (is_object and called_jaxpr(equation) is None)


def is_kernel(equation: Equation) -> bool:
    """Whether an equation runs a kernel written in Pallas."""
    return equation.primitive.name in _KERNELS


def entered_jaxprs(equation: Equation) -> Sequence[Any]:
    """Return the Jaxprs of an equation that the interpreter walks through itself.

    What an equation does otherwise is left to the rules of JAX as a whole.
    """
    primitive = equation.primitive
    if primitive is primitives.scan_p:
        return (scan_parts(equation).body.jaxpr,)
    if primitive is primitives.while_p:
        parts = while_parts(equation)
        return parts.condition.jaxpr, parts.body.jaxpr
    if primitive is primitives.cond_p and not is_platform_dependent(equation):
        return tuple(branch.jaxpr for branch in cond_branches(equation))
    body = called_jaxpr(equation)
    return () if body is None else (body.jaxpr,)


def jax_name(equation: Equation) -> str:
    """Return the name of an equation's primitive if it is one of JAX, and '' otherwise.

    A primitive of somebody else may have a name that one of JAX has.
    """
    primitive = equation.primitive
    return primitive.name if is_jax_primitive(primitive) else ""


def is_jax_primitive(primitive: Any) -> bool:
    """Whether a primitive is the one that JAX publishes under its name, or has a name of none.

    Primitives of JAX that are not public are known by their names alone.
    """
    published = _PUBLISHED.get(primitive.name)
    return published is None or any(primitive is known for known in published)


def is_published(name: str) -> bool:
    """Whether JAX publishes a primitive of this name."""
    return name in _PUBLISHED


def _published() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name in dir(primitives):
        if isinstance(primitive := getattr(primitives, name), jex_core.Primitive):
            found.setdefault(primitive.name, []).append(primitive)
    return found


_PUBLISHED = _published()


def bind(equation: Equation, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation at `values`; return a list, also of a single output."""
    params = equation.primitive.get_bind_params(equation.params)
    # JAX 0.10.0 and later versions differ in what this returns.
    functions, params = params if isinstance(params, tuple) else ((), params)
    outputs = equation.primitive.bind(*functions, *values, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def is_leaked(value: Any) -> bool:
    """Whether a value is a tracer of none of the transformations that are under way."""
    if not isinstance(value, jax.core.Tracer):
        return False
    probe: list[Any] = []  # a tracer inside of all transformations, whose trace knows those around
    jax.make_jaxpr(lambda x: probe.append(x))(0.0)
    trace = probe[0]._trace
    while trace is not None and trace is not value._trace:
        trace = getattr(trace, "parent_trace", None)
    return trace is None


def varying_axes_of(kind: Any) -> frozenset[str]:
    """Return the axes of `shard_map` along which arrays of a type differ by device."""
    varying = getattr(kind, "vma", None)
    if varying is None:  # JAX 0.10.2 and later
        varying = kind.mat.varying
    return frozenset(varying)


def trace_state() -> tuple[bool, bool]:
    """Whether operations run at once, in no `jax.jit`; and if so, whether under a derivative.

    Under `jax.vmap` they do too.
    """
    differentiating = False
    with jex_core.take_current_trace() as trace:
        while type(trace).__name__ in ("BatchTrace", "JVPTrace", "LinearizeTrace"):
            differentiating = differentiating or type(trace).__name__ != "BatchTrace"
            trace = trace.parent_trace
        is_direct = type(trace).__name__ == "EvalTrace"
    return is_direct and not jax.config.jax_disable_jit, differentiating  # type: ignore[attr-defined]
