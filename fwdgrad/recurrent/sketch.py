"""The influence as a guess that is carried exactly, and a sketch of the rest."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.recurrent.owners import at_owners, find_owners, units_that_own
from fwdgrad.recurrent.signs import random_signs
from fwdgrad.recurrent.step import StepAt
from fwdgrad.util.trees import Array, PyTree

Guess = Literal["diagonal", "immediate", "none"]


class _Carried(NamedTuple):
    """J ≈ D + P Q.

    P is (n, k); Q has a leaf (k, *shape) for each of θ. D has for each parameter one entry that is
    not zero, in the row of its owner: an array like the leaf. `owning` (n,) is 1 for each unit that
    owns a parameter and else 0.
    """

    left: Array
    right: list[Array]
    owners: list[Array]
    owning: Array
    guess: list[Array]


def _sizes(carried: _Carried) -> tuple[list[Any], int]:
    return [q.shape[1:] for q in carried.right], len(carried.left)


@dataclass(frozen=True)
class Sketch:
    """Carry J as D + P Q: a guess D, and a matrix P Q of rank `rank` for the rest.

    With A = ∂s'/∂s and B = ∂s'/∂θ, a step has the influence J' = A (D + P Q) + B. The guess has one
    row for each parameter, its owner: the unit that it moves most in one step, as a weight into a
    unit does. There it goes on as D' = diag(A) D + B. (Of B the rows of all units that own a
    parameter are added, which is B at the owner if the parameter moves no other of them.) What is
    left, E = J' − D', is known without being made: uᵀE is a pass backwards through the step, a
    product with Q, and a look-up in D and D'. It goes on in two parts, with U an orthonormal basis
    of the columns of A P, and R = `num_random` vectors ω of random signs:

        E ≈ U Uᵀ E + (1/R) Σ_r ω̃_r ω̃_rᵀ E,    ω̃ = (I − U Uᵀ) ω.

    Its rank is k + R, with k = `rank`. Of its singular values the k − 1 largest stay as they are;
    the others are mixed with random signs into one product, Σ_i ε_i √σ_i u_i (Σ_i ε_i √σ_i v_i)ᵀ.
    Neither U nor D' depends on the signs of this step, so E[P' Q'] = E: whatever the guess, the
    mean is J. The guess is a control variate of J.

    With `rank` at least n nothing is random, and this is real-time recurrent learning. With `rank`
    zero the guess is all, and biased. It is SnAp-1 if each parameter moves one unit in a step, as
    in an RNN or a GRU, and exact if the state is also diagonal: no unit moves another one.

    A step costs k + R + 2 passes through it backwards, and about 4 k² d multiplications for d
    parameters. The guess "diagonal" takes n more passes backwards, for A; the others k forwards,
    for A P. The influence takes (k + 2) d numbers; a step has some more arrays of (k + R) d.

    Args:
      rank: k; more than n counts as n.
      num_random: R. With 0 the part of E outside the span of A P is dropped, which biases the
        estimate. Ignored if `rank` is zero.
      guess: "diagonal", as above; "immediate", D' = B at the owners; or "none", D = 0.

    Raises:
      TypeError, ValueError: an argument is of a wrong kind.

    Source: SnAp-1 is that of J. Menick et al., Practical Real Time Recurrent Learning with a Sparse
    Approximation (2020), there alone. Mixing the smallest singular values is that of F. Benzing et
    al., Optimal Kronecker-Sum Approximation of Real Time Recurrent Learning (2019).
    """

    rank: int = 16
    num_random: int = 1
    guess: Guess = "diagonal"

    def __post_init__(self) -> None:
        for name in ("rank", "num_random"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise TypeError(f"{name} must be an integer; found {value!r}.")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more; found {value}.")
        if self.guess not in get_args(Guess):
            raise ValueError(
                f"guess must be one of {', '.join(map(repr, get_args(Guess)))}; found "
                f"{self.guess!r}."
            )
        if self.rank == 0 and self.guess == "none":
            raise ValueError(
                "rank is 0 and guess is 'none', so that nothing is carried. Leave one of them out."
            )

    def first(self, key: Array, step: StepAt) -> _Carried:
        size = step.vector.size
        number = min(self.rank, size)
        owners, guess = [], []
        if self.guess != "none":
            owners = find_owners(key, step)
            guess = [jnp.zeros(p.shape, step.dtype) for p in step.theta]
        return _Carried(
            jnp.zeros((size, number), step.dtype),
            [jnp.zeros((number, *p.shape), step.dtype) for p in step.theta],
            owners,
            units_that_own(owners, size).astype(step.dtype),
            guess,
        )

    def advance(
        self, key: Array, step: StepAt, carried: _Carried
    ) -> tuple[_Carried, PyTree, Array, list[Array]]:
        step.check_carried(carried, _Carried, _sizes)
        left, right, owners, owning, guess = carried
        along, grad = step.gradient_of_value()
        if self.rank:
            grad = [g + jnp.tensordot(along @ left, q, 1) for g, q in zip(grad, right, strict=True)]
        if owners:
            looked_up = at_owners(along, owners)
            grad = [g + c * d for g, c, d in zip(grad, looked_up, guess, strict=True)]

        # One batch of passes backwards serves both the new guess and the sketch.
        of_rest, of_mixture = jax.random.split(key)
        jacobian = step.jacobian() if self.guess == "diagonal" else None
        columns, rows, mixed = self._directions(of_rest, step, left, jacobian)
        through, of_theta = step.pull(jnp.concatenate([owning[None], rows]))
        new_guess = [b[0] for b in of_theta] if owners else []
        if jacobian is not None:
            kept = at_owners(jnp.diagonal(jacobian), owners)
            new_guess = [b + a * d for b, a, d in zip(new_guess, kept, guess, strict=True)]
        if self.rank:
            products = [
                jnp.tensordot(mixed, q, 1) + b[1:] for q, b in zip(right, of_theta, strict=True)
            ]
            if owners:
                before, after = at_owners(through[1:], owners), at_owners(rows, owners)
                parts = zip(products, before, guess, after, new_guess, strict=True)
                products = [q + b * d[None] - a * new[None] for q, b, d, a, new in parts]
            left, right = _reduced(of_mixture, columns, products, left.shape[1])
        carried = _Carried(left, right, owners, owning, new_guess)
        return carried, *step.results(), grad

    def _directions(
        self, key: Array, step: StepAt, left: Array, jacobian: Array | None
    ) -> tuple[Array, Array, Array]:
        """Return columns (n, k + R), rows, and rows A P: E is about columns · (rows E)."""
        if not self.rank:
            return left, left.T, left.T
        pushed = step.push(left) if jacobian is None else jacobian @ left
        columns = jnp.linalg.qr(pushed)[0]
        rows = columns.T
        if self.num_random:
            signs = random_signs(key, (len(pushed), self.num_random), pushed.dtype)
            rest = signs - columns @ (columns.T @ signs)
            columns = jnp.concatenate([columns, rest], axis=1)
            rows = jnp.concatenate([rows, rest.T / self.num_random])
        return columns, rows, rows @ pushed


def _reduced(key: Array, left: Array, right: list[Array], rank: int) -> tuple[Array, list[Array]]:
    """Return a product of a lower rank, whose mean over random signs is `left` · `right`."""
    basis, triangle = jnp.linalg.qr(left)
    flat = [triangle @ q.reshape(len(q), -1) for q in right]
    gram = jnp.sum(jnp.stack([q @ q.T for q in flat]), axis=0)
    squares, vectors = jnp.linalg.eigh(gram)  # ascending; of the columns of `basis`
    number = len(squares) - rank + 1  # of singular values that are mixed
    # Any positive scale keeps the mean. Squares below the rounding of the largest one may come out
    # as zero or less, though their part is not zero; all are zero if nothing is carried yet.
    least = 8 * jnp.finfo(squares.dtype).eps * squares[-1]
    scales = jnp.sqrt(jnp.sqrt(jnp.maximum(squares[:number], least)))
    signs = random_signs(key, (number,), left.dtype)
    inverses = jnp.where(scales > 0, 1 / jnp.where(scales > 0, scales, 1), 0)
    kept = vectors[:, number:]
    to_left = jnp.concatenate([(vectors[:, :number] @ (signs * scales))[:, None], kept], axis=1)
    to_right = jnp.concatenate([(vectors[:, :number] @ (signs * inverses))[:, None], kept], axis=1)
    shapes = [(rank, *q.shape[1:]) for q in right]
    return basis @ to_left, [
        (to_right.T @ q).reshape(shape) for q, shape in zip(flat, shapes, strict=True)
    ]
