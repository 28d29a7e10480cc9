"""Products, convolutions, Fourier transforms, linear algebra and sparse arrays."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import sparse
from jax.experimental.sparse import coo, csr, linalg

from tests.propagation.primitives.case import Case, known

SQUARE = ((4, 4),)
IMAGES = (2, 5, 4, 3)


def positive(x):
    return x @ x.T + 4 * jnp.eye(len(x), dtype=x.dtype)


def convolved(**options):
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


def solved(x, b):
    return lax.custom_linear_solve(
        lambda v: positive(x) @ v, b, lambda _, v: jnp.linalg.solve(positive(x), v), symmetric=True
    )


PRODUCTS = {
    "dot_general": lambda: Case(lax.dot, ((4, 6), (6, 5))),
    "dot_general, from the left": lambda: Case(lambda x: jnp.ones((3, 4), x.dtype) @ x),
    "dot_general, a vector": lambda: Case(lax.dot, ((4, 6), (6,))),
    "dot_general, of vectors": lambda: Case(jnp.vdot, ((6,), (6,))),
    "dot_general, batched": lambda: Case(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y), ((2, 4, 3), (2, 3, 5))
    ),
    "dot_general, two axes": lambda: Case(
        lambda x, y: jnp.einsum("ija,jib->ab", x, y), ((2, 4, 3), (4, 2, 5))
    ),
    "outer product": lambda: Case(jnp.outer, ((4,), (6,))),
    "conv_general_dilated": lambda: Case(convolved(), (IMAGES, (3, 2, 3, 4))),
    "conv_general_dilated, strided": lambda: Case(
        convolved(window_strides=(2, 1), rhs_dilation=(1, 2)), (IMAGES, (3, 2, 3, 4))
    ),
    "conv_general_dilated, transposed": lambda: Case(
        convolved(lhs_dilation=(2, 2), padding=((0, 1), (1, 0))), (IMAGES, (2, 2, 3, 4))
    ),
    "conv_general_dilated, grouped": lambda: Case(
        convolved(feature_group_count=3), (IMAGES, (3, 3, 1, 6))
    ),
    "conv_general_dilated, batch groups": lambda: Case(
        convolved(batch_group_count=2), (IMAGES, (2, 2, 3, 4))
    ),
    "ragged_dot_general": lambda: Case(
        lambda x, w: lax.ragged_dot(x, w, jnp.array([1, 3])),
        ((4, 3), (2, 3, 5)), mapped=False, half=False,
    ),
    "fft": lambda: Case(lambda x: lax.fft(lax.complex(x, x), "FFT", (6,)), half=False),
    "rfft": lambda: Case(jnp.fft.rfft2, half=False),
}  # fmt: skip

SOLVERS = {
    "cholesky": lambda: Case(lambda x: lax.linalg.cholesky(positive(x)), SQUARE, half=False),
    # The order of the eigenvalues is not given: their sum is.
    "eig": lambda: Case(
        lambda x: lax.linalg.eig(
            x, compute_left_eigenvectors=False, compute_right_eigenvectors=False
        )[0].sum(),
        SQUARE, half=False,
    ),
    "eigh": lambda: Case(
        lambda x: jnp.sum(jax.scipy.linalg.eigh(positive(x))[0] ** 2), SQUARE, half=False
    ),
    "lu": lambda: Case(lambda x: lax.linalg.lu(positive(x))[0], SQUARE, half=False),
    "qr": lambda: Case(lambda x: lax.linalg.qr(positive(x)), SQUARE, half=False),
    "svd": lambda: Case(lambda x: lax.linalg.svd(x, compute_uv=False), half=False),
    "triangular_solve": lambda: Case(
        lambda a, b: lax.linalg.triangular_solve(positive(a), b, left_side=True),
        ((4, 4), (4, 3)), half=False,
    ),
    "tridiagonal_solve": lambda: Case(
        lambda d, b: lax.linalg.tridiagonal_solve(d * 0.1, 3 + d, d * 0.2, b),
        ((4,), (4, 3)), half=False,
    ),
    "custom_linear_solve": lambda: Case(solved, ((4, 4), (4,)), half=False),
}  # fmt: skip


def _indices():
    return jnp.array([[0, 1], [1, 5], [3, 0]])


def _bcoo(data, shape=(4, 6)):
    return sparse.BCOO((data, _indices()), shape=shape)


def _bcsr(data):
    return sparse.BCSR((data, jnp.array([1, 5, 0]), jnp.array([0, 1, 2, 2, 3])), shape=(4, 6))


def _coo(data):
    return coo.COO((data, jnp.array([0, 1, 3]), jnp.array([1, 5, 0])), shape=(4, 6))


def _csr(data):
    return csr.CSR((data, jnp.array([1, 5, 0]), jnp.array([0, 1, 2, 2, 3])), shape=(4, 6))


def of_data(fun, mapped=True):
    return lambda: Case(fun, ((3,), (6, 2)), half=False, mapped=mapped)


def from_dense(fun):
    return lambda: Case(lambda x: fun(x * (jnp.abs(x) > 0.1)).data, half=False, mapped=False)


def spsolved(data, b):
    return linalg.spsolve(data, jnp.arange(4), jnp.arange(5), b)


SPARSE = {
    "bcoo_todense": of_data(lambda x, y: _bcoo(x).todense()),
    "bcoo_dot_general": of_data(lambda x, y: _bcoo(x) @ y),
    "bcoo_transpose": of_data(lambda x, y: _bcoo(x).T.data),
    "bcoo_sort_indices": of_data(lambda x, y: _bcoo(x).sort_indices().data),
    "bcoo_sum_duplicates": of_data(lambda x, y: _bcoo(x).sum_duplicates(nse=3).data),
    "bcoo_fromdense": from_dense(lambda x: sparse.bcoo_fromdense(x, nse=24)),
    "bcoo_dot_general_sampled": lambda: Case(
        lambda x, y: sparse.bcoo_dot_general_sampled(
            x, y, _indices(), dimension_numbers=(((1,), (0,)), ((), ()))
        ),
        ((4, 3), (3, 6)), half=False,
    ),
    "bcoo_spdot_general": lambda: Case(
        lambda x, y: (_bcoo(x) @ _bcoo(y).T).todense(), ((3,), (3,)), half=False, mapped=False
    ),
    "bcsr_todense": of_data(lambda x, y: _bcsr(x).todense()),
    "bcsr_dot_general": of_data(lambda x, y: _bcsr(x) @ y),
    "bcsr_extract": lambda: Case(
        lambda x: sparse.bcsr.bcsr_extract(_bcsr(x).indices, _bcsr(x).indptr, jnp.outer(
            jnp.arange(4.0), jnp.pad(x, (0, 3))
        )),
        ((3,),), half=False,
    ),
    "bcsr_fromdense": from_dense(lambda x: sparse.BCSR.fromdense(x, nse=24)),
    "coo_todense": of_data(lambda x, y: _coo(x).todense(), mapped=False),
    "coo_matvec": of_data(lambda x, y: _coo(x) @ y[:, 0], mapped=False),
    "coo_matmat": of_data(lambda x, y: _coo(x) @ y, mapped=False),
    "coo_fromdense": from_dense(lambda x: coo.COO.fromdense(x, nse=24)),
    "csr_todense": of_data(lambda x, y: _csr(x).todense(), mapped=False),
    "csr_matvec": of_data(lambda x, y: _csr(x) @ y[:, 0], mapped=False),
    "csr_matmat": of_data(lambda x, y: _csr(x) @ y, mapped=False),
    "csr_fromdense": from_dense(lambda x: csr.CSR.fromdense(x, nse=24)),
    "todense": of_data(lambda x, y: sparse.todense(_bcoo(x))),
    "spsolve": lambda: Case(
        spsolved, ((4,), (4,)), low=0.5, high=2.0, half=False, mapped=False
    ),
}  # fmt: skip

CASES = known({**PRODUCTS, **SOLVERS, **SPARSE})
