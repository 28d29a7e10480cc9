"""Layout of JAX's equations by version, with `layouts` (loops) and `tracers` beside this file.

The primitives of a jaxpr keep their meaning for years. The parameters in which an equation keeps
its bodies, and the number of operands that a loop carries, have changed. Each question that the
library asks of an equation is one function here; an unknown layout is an error that lists the
tested versions (`.ci/run` tests the oldest and the newest).
"""

import copy
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend import source_info_util
from jax.extend.core import primitives

from fwdgrad.util.layouts import (
    JaxprEqn,
    as_closed,
    cond_branches,
    is_platform_dependent,
    required_param,
    scan_parts,
    while_parts,
)

# Primitives that only call a jaxpr: name -> the parameter that holds the jaxpr. JAX 0.11 has
# `eval_jaxpr` in the place of `call` and `closed_call`.
_CALLS = {
    primitives.jit_p.name: "jaxpr",
    primitives.remat_p.name: "jaxpr",
    primitives.custom_vjp_call_p.name: "call_jaxpr",
    "call": "call_jaxpr",
    "closed_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "program_order": "call_jaxpr",
}
# An object with a method for each transformation, by which JAX 0.11 and later call `custom_vjp` and
# `remat` functions if `jax_custom_vjp3` and `jax_remat3` are set.
_OBJECT = "call_hi_primitive"
_CUSTOM_VJP_OBJECT = "CustomVJPTraced"
_CALLING_OBJECTS = (_CUSTOM_VJP_OBJECT, "RematTraced", "OptRemat")

CALL_NAMES = (*_CALLS, _OBJECT)

# Their jaxprs are of another language: the body of a kernel reads and writes references to memory.
_KERNELS = ("pallas_call", "core_map", "mpmd_map")

_LOOPS = (primitives.scan_p, primitives.while_p, primitives.cond_p)


def called_jaxpr(equation: JaxprEqn) -> Any | None:
    """Return the ClosedJaxpr of an equation that only calls a jaxpr, or None for any other.

    A call of a `custom_vjp` function counts: its jaxpr is the function without its rule. A call of
    a `custom_jvp` function does not count, because forward mode uses its rule.
    """
    name = jax_name(equation)
    if name == _OBJECT:
        called = equation.params["_prim"]
        return _expanded(called) if type(called).__name__ in _CALLING_OBJECTS else None
    return as_closed(required_param(equation, _CALLS[name])) if name in _CALLS else None


@functools.lru_cache(maxsize=256)
def _expanded(primitive_object: Any) -> Any:
    """Return the ClosedJaxpr of the function that a primitive object calls."""

    def call(*flat: Any) -> Any:
        args = jax.tree.unflatten(primitive_object.in_tree, flat)
        return jax.tree.leaves(primitive_object.expand(*args))

    return jax.make_jaxpr(call)(*primitive_object.in_avals_flat)


def is_custom_vjp(equation: JaxprEqn) -> bool:
    """Return True for a call of a function with a reverse-mode rule (`jax.custom_vjp`)."""
    if equation.primitive.name == _OBJECT:
        return type(equation.params["_prim"]).__name__ == _CUSTOM_VJP_OBJECT
    return equation.primitive is primitives.custom_vjp_call_p


def function_name(equation: JaxprEqn) -> str:
    """Return name and source line of the function that a custom_vjp or custom_jvp call calls."""
    if equation.primitive.name == _OBJECT:
        jaxpr = equation.params["_prim"].traced.jaxpr
    else:
        jaxpr = equation.params["call_jaxpr"]
    info = getattr(as_closed(jaxpr).jaxpr, "debug_info", None)
    return getattr(info, "func_src_info", None) or "a function without a name"


def custom_jvp_body(equation: JaxprEqn) -> Any | None:
    """Return the ClosedJaxpr of the function of a custom_jvp call, or None for any other."""
    is_call = equation.primitive is primitives.custom_jvp_call_p
    return as_closed(required_param(equation, "call_jaxpr")) if is_call else None


def inner_jaxprs(equation: JaxprEqn) -> Sequence[Any]:
    """Return the Jaxprs that an equation calls, loops over or branches to, none of a kernel."""
    if is_kernel(equation):
        return ()
    if equation.primitive.name == _OBJECT:
        body = called_jaxpr(equation)
        return () if body is None else (body.jaxpr,)
    return tuple(jex_core.jaxprs_in_params(equation.params))


def is_opaque(equation: JaxprEqn) -> bool:
    """Return True for a kernel or a primitive object without a jaxpr, which no rule can enter."""
    is_object = equation.primitive.name == _OBJECT
    return is_kernel(equation) or (is_object and called_jaxpr(equation) is None)


def is_kernel(equation: JaxprEqn) -> bool:
    """Return True for an equation that runs a Pallas kernel."""
    return jax_name(equation) in _KERNELS


def entered_jaxprs(equation: JaxprEqn) -> Sequence[Any]:
    """Return the Jaxprs of an equation into which the interpreter propagates tangents.

    Any other equation is differentiated as a whole by `jax.jvp`.
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


def jax_name(equation: JaxprEqn) -> str:
    """Return the name of an equation's primitive if the primitive is one of JAX, and '' otherwise.

    A user's own primitive may have the name of one of JAX and another meaning.
    """
    primitive = equation.primitive
    return primitive.name if is_jax_primitive(primitive) else ""


def is_jax_primitive(primitive: Any) -> bool:
    """Return True if a module of JAX defines the primitive, published or not."""
    if primitive not in _IS_JAX_PRIMITIVE:  # its module may have been imported just now
        _IS_JAX_PRIMITIVE.update(dict.fromkeys(_defined_by_jax(), True))
        _IS_JAX_PRIMITIVE.setdefault(primitive, False)
    return _IS_JAX_PRIMITIVE[primitive]


def is_published(name: str) -> bool:
    """Return True if a module of JAX defines a primitive of this name."""
    return any(primitive.name == name for primitive in _defined_by_jax())


_IS_JAX_PRIMITIVE: dict[Any, bool] = {}


def _defined_by_jax() -> Iterator[Any]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "jax" and module is not None:
            for value in list(vars(module).values()):
                if isinstance(value, jex_core.Primitive):
                    yield value


def bind(equation: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Evaluate one equation at the values of its operands; return the list of its outputs."""
    params = equation.primitive.get_bind_params(equation.params)
    # JAX 0.10.0 and later versions differ in what this returns.
    functions, params = params if isinstance(params, tuple) else ((), params)
    outputs = equation.primitive.bind(*functions, *values, **params)
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def find_custom_vjp(equation: JaxprEqn) -> JaxprEqn | None:
    """Return the first call of a `custom_vjp` function in an equation, however deep, or None."""
    if is_custom_vjp(equation):
        return equation
    inner = (e for jaxpr in inner_jaxprs(equation) for e in jaxpr.eqns)
    return next((found for e in inner if (found := find_custom_vjp(e)) is not None), None)


def uses_references(equation: JaxprEqn) -> bool:
    """Return True if an equation makes or reads mutable arrays (`jax.new_ref`), as its bodies may.

    The memory of an equation that is not entered, such as a kernel, is left to the rules of JAX.
    """
    atoms = (*equation.invars, *equation.outvars)
    return any(isinstance(v.aval, jax.ref.AbstractRef) for v in atoms) or any(
        uses_references(inner) for jaxpr in entered_jaxprs(equation) for inner in jaxpr.eqns
    )


class Equation:
    """An equation of a jaxpr, with the facts that are asked of each equation again and again.

    It stands for JAX's own equation wherever one is read: `primitive`, `params`, `invars`,
    `outvars`, `source_info` and `ctx` are those of that.

    Attributes:
      name: of the primitive if it is one of JAX, and '' otherwise (see `jax_name`).
      reads: the variables among the operands, without literals.
      is_inexact: True if an output is real or complex, so that it can have a tangent.
      has_loops: True if the equation is a loop or a branch, or calls a function that has one.
      is_kernel: True if it runs a Pallas kernel.
      custom_vjp: the first call of a `custom_vjp` function in it, or None.
      body: the ClosedJaxpr that it calls and does nothing else, or None (see `called_jaxpr`).
      function: the ClosedJaxpr that it evaluates, of a call or of a custom_jvp function, or None. A
        custom_vjp function has no forward mode, so None.
    """

    __slots__ = (
        "body", "ctx", "custom_vjp", "function", "has_loops", "invars", "is_inexact", "is_kernel",
        "name", "outvars", "params", "primitive", "reads", "source", "source_info",
    )  # fmt: skip

    def __init__(self, source: JaxprEqn):
        self.source = source
        self.primitive, self.params = source.primitive, source.params
        self.invars, self.outvars = source.invars, source.outvars
        self.source_info, self.ctx = source.source_info, source.ctx
        self.name = jax_name(source)
        self.reads = tuple(v for v in source.invars if not isinstance(v, jex_core.Literal))
        self.is_inexact = any(map(is_inexact, source.outvars))
        self.has_loops, self.is_kernel = has_loops(source), is_kernel(source)
        self.custom_vjp, self.body = find_custom_vjp(source), called_jaxpr(source)
        self.function = custom_jvp_body(source)
        if self.function is None and not is_custom_vjp(source):
            self.function = self.body

    def renamed(self, invars: Sequence[Any], outvars: Sequence[Any]) -> "Equation":
        """Return the same equation of other operands and outputs."""
        new = copy.copy(self)
        new.invars, new.outvars = list(invars), list(outvars)
        new.reads = tuple(v for v in invars if not isinstance(v, jex_core.Literal))
        return new


class Program(NamedTuple):
    """A ClosedJaxpr, its equations read.

    Attributes:
      constvars, invars, outvars: as of a Jaxpr.
      consts: the values of the constvars.
      eqns: the equations.
    """

    constvars: Sequence[Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
    consts: Sequence[Any]
    eqns: list[Equation]

    def environment(self, inputs: Sequence[Any]) -> dict[Any, Any]:
        """Return the values of the constants and inputs, by variable."""
        values = dict(zip(self.constvars, self.consts, strict=True))
        values.update(zip(self.invars, inputs, strict=True))
        return values


def read_program(closed: Any, call: Equation | None = None) -> Program:
    """Read a ClosedJaxpr, of a loss or of the body of `call`.

    An equation in the body of one of JAX's own functions may have no place in the user's code; it
    gets that of the call.
    """
    jaxpr = closed.jaxpr
    equations = [*map(Equation, jaxpr.eqns)]
    if call is not None:
        for equation in equations:
            if not source_info_util.summarize(equation.source_info, num_frames=1):
                equation.source_info = call.source_info
    return Program(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, closed.consts, equations)


def has_loops(equation: JaxprEqn) -> bool:
    """Return True for a loop or a branch, and for a call of a function that has one."""
    return equation.primitive in _LOOPS or any(
        has_loops(inner) for jaxpr in inner_jaxprs(equation) for inner in jaxpr.eqns
    )


def is_inexact(variable: Any) -> bool:
    """Return True for a real or complex variable of a jaxpr, which can have a tangent."""
    dtype = getattr(variable.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)
