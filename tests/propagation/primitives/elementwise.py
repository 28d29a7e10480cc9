"""Functions whose entries depend on the same entry of the operands alone."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import xla_metadata
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import primitives

from tests.propagation.primitives.case import Case, bind, known

BINARY = ((4, 6), (4, 6))
TERNARY = ((4, 6), (4, 6), (4, 6))
POSITIVE = {"low": 0.5, "high": 3.0}


def unary(fun, low=-2.0, high=2.0, half=True):
    return lambda: Case(fun(), low=low, high=high, half=half)


def compared(name):
    return lambda: Case(lambda x, y: jnp.where(bind(name)(x, y), x, 2 * y), BINARY)


def with_integers(fun):
    """Return the case of a float that is multiplied by a function of its rounded value."""

    def apply(x):
        whole = lax.convert_element_type(jnp.round(4 * x), jnp.int32)
        return x * fun(whole).astype(x.dtype)

    return lambda: Case(apply)


UNARY = {
    "abs": unary(lambda: lax.abs),
    "acos": unary(lambda: lax.acos, -0.9, 0.9),
    "acosh": unary(lambda: lax.acosh, 1.5, 3.0),
    "asin": unary(lambda: lax.asin, -0.9, 0.9),
    "asinh": unary(lambda: lax.asinh),
    "atan": unary(lambda: lax.atan),
    "atanh": unary(lambda: lax.atanh, -0.9, 0.9),
    "bessel_i0e": unary(lambda: lax.bessel_i0e),
    "bessel_i1e": unary(lambda: lax.bessel_i1e),
    "cbrt": unary(lambda: lax.cbrt, **POSITIVE),
    "ceil": unary(lambda: lax.ceil),
    "cos": unary(lambda: lax.cos),
    "cosh": unary(lambda: lax.cosh),
    "digamma": unary(lambda: lax.digamma, **POSITIVE),
    "erf": unary(lambda: lax.erf),
    "erf_inv": unary(lambda: lax.erf_inv, -0.9, 0.9),
    "erfc": unary(lambda: lax.erfc),
    "exp": unary(lambda: lax.exp),
    "exp2": unary(lambda: lax.exp2),
    "expm1": unary(lambda: lax.expm1),
    "floor": unary(lambda: lax.floor),
    "integer_pow": unary(lambda: lambda x: lax.integer_pow(x, 3)),
    "lgamma": unary(lambda: lax.lgamma, **POSITIVE),
    "log": unary(lambda: lax.log, **POSITIVE),
    "log1p": unary(lambda: lax.log1p, **POSITIVE),
    "log2": unary(lambda: lax.log2, **POSITIVE),
    "logistic": unary(lambda: lax.logistic),
    "neg": unary(lambda: lax.neg),
    "one_minus_square": unary(lambda: lax.one_minus_square),
    "reduce_precision": unary(lambda: lambda x: lax.reduce_precision(x, 8, 10)),
    "round": unary(lambda: lax.round),
    "rsqrt": unary(lambda: lax.rsqrt, **POSITIVE),
    "sign": unary(lambda: lax.sign),
    "sin": unary(lambda: lax.sin),
    "sinh": unary(lambda: lax.sinh),
    "sqrt": unary(lambda: lax.sqrt, **POSITIVE),
    "square": unary(lambda: lax.square),
    "tan": unary(lambda: lax.tan, -1.0, 1.0),
    "tanh": unary(lambda: lax.tanh),
    "is_finite": unary(lambda: lambda x: jnp.where(lax.is_finite(x), x, 0)),
    # Among complex functions only the modulus has a real derivative.
    "complex": unary(lambda: lambda x: lax.complex(x, 2 * x), half=False),
    "real, imag, conj": unary(
        lambda: lambda x: [f(lax.conj(lax.complex(x, 2 * x))) for f in (lax.real, lax.imag)],
        half=False,
    ),
    "modulus": unary(lambda: lambda x: lax.abs(lax.exp(lax.complex(x, 2 * x))), half=False),
    "convert_element_type": unary(lambda: lambda x: x.astype("float32").astype(x.dtype)),
    "to an integer and back": unary(lambda: lambda x: x * x.astype("int32").astype(x.dtype)),
    "bitcast_convert_type": unary(
        lambda: lambda x: x + lax.bitcast_convert_type(
            lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}"), x.dtype
        )
    ),
    "copy": unary(lambda: primitives.copy_p.bind),
    "name": unary(lambda: lambda x: checkpoint_name(x, "name")),
    "stop_gradient": unary(lambda: lambda x: x * lax.stop_gradient(x)),
    "device_put": unary(lambda: lambda x: jax.device_put(x, jax.devices()[0])),
    "optimization_barrier": unary(lambda: lax.optimization_barrier),
    "tie": unary(lambda: lambda x: bind("tie")(jnp.zeros(()), x)),
    "xla_metadata_value": unary(
        lambda: (bind("xla_metadata_value"), lambda x: xla_metadata.set_xla_metadata(x, a="1"))[1]
    ),
    "relu": unary(lambda: jax.nn.relu),
    "gelu, exact": unary(lambda: functools.partial(jax.nn.gelu, approximate=False)),
}  # fmt: skip

SEVERAL = {
    "add": lambda: Case(lax.add, BINARY),
    "add, broadcast": lambda: Case(lambda x, y: x + y, ((4, 6), (1, 6))),
    "add_any": lambda: Case(primitives.add_jaxvals_p.bind, BINARY),
    "sub": lambda: Case(lax.sub, BINARY),
    "mul": lambda: Case(lax.mul, BINARY),
    "mul, a held number": lambda: Case(lambda x: 3 * x),
    "div by a held number": lambda: Case(lambda x: x / 3),
    "convert to half precision": lambda: Case(lambda x: x.astype("bfloat16"), half=False),
    "mul, a number": lambda: Case(lambda x, y: x * y, ((4, 6), ())),
    "div": lambda: Case(lax.div, BINARY, **POSITIVE),
    "max": lambda: Case(lax.max, BINARY),
    "min": lambda: Case(lax.min, BINARY),
    "pow": lambda: Case(lax.pow, BINARY, **POSITIVE),
    "pow, an integer": lambda: Case(lambda x: lax.pow(x, jnp.int32(3)), **POSITIVE),
    "atan2": lambda: Case(lax.atan2, BINARY, **POSITIVE),
    "rem": lambda: Case(lax.rem, BINARY, **POSITIVE),
    # It has no derivative before JAX 0.12.
    "nextafter": lambda: (bind("nextafter"), Case(lax.nextafter, BINARY, half=False))[1],
    "complex of two": lambda: Case(lax.complex, BINARY, half=False),
    "igamma": lambda: Case(lax.igamma, BINARY, **POSITIVE),
    "igammac": lambda: Case(lax.igammac, BINARY, **POSITIVE),
    # It has no derivative by its order.
    "polygamma": lambda: Case(lambda x: lax.polygamma(jnp.full_like(x, 2), x), **POSITIVE),
    # It has no derivative by its first two operands.
    "regularized_incomplete_beta": lambda: Case(
        lambda x: lax.betainc(jnp.full_like(x, 2), jnp.full_like(x, 3), x),
        low=0.3, high=0.7, half=False,
    ),
    "clamp": lambda: Case(lax.clamp, TERNARY),
    "clamp, numbers": lambda: Case(lambda x: jnp.clip(x, -0.5, 0.5)),
    "select_n": lambda: Case(lambda x, y: lax.select_n(x > 0, x, y), BINARY),
    "select_n, an integer": lambda: Case(
        lambda x, y: lax.select_n(jnp.arange(24).reshape(4, 6) % 3, x, y, x), BINARY
    ),
    "layout_constraint": lambda: Case(
        lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))), ((6,),)
    ),
    "polynomial": lambda: (
        bind("polynomial"),
        Case(lambda x, y, z: lax.polynomial(x, [y, z, 2.0, x]), TERNARY),
    )[1],
    **{name: compared(name) for name in ("eq", "ne", "ge", "gt", "le", "lt")},
    **{name: compared(name) for name in ("eq_to", "le_to", "lt_to")},
}  # fmt: skip

INTEGERS = {
    "and, or, xor, not": with_integers(lambda n: (n & 5 | 2) ^ ~n),
    "shifts": with_integers(
        lambda n: (
            lax.shift_left(n, 2)
            + lax.shift_right_arithmetic(n, 1)
            + lax.shift_right_logical(n + 9, 1)
        )
    ),
    "mulhi": lambda: (
        bind("mulhi"),
        with_integers(lambda n: lax.mulhi(n << 28, n + 3))(),
    )[1],
    "sums and powers": with_integers(lambda n: lax.max(n * n - n, n) // 3 + lax.rem(n, 2)),
    "booleans": with_integers(lambda n: (n > 0) & (n < 4) | ~(n == 2)),
}

CASES = known({**UNARY, **SEVERAL, **INTEGERS})
