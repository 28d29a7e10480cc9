"""The table of primitives: small functions that together use every one that JAX differentiates."""

from tests.propagation.primitives import calls, elementwise, products, structural
from tests.propagation.primitives.case import Case

CASES: dict[str, Case] = {
    **elementwise.CASES,
    **structural.CASES,
    **products.CASES,
    **calls.CASES,
}
