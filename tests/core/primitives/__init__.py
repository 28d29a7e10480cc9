"""The table of primitives: small functions that together use every one that JAX differentiates."""

from tests.core.primitives import calls, elementwise, products, structural
from tests.core.primitives.case import Case

CASES: dict[str, Case] = {
    **elementwise.CASES,
    **structural.CASES,
    **products.CASES,
    **calls.CASES,
}
