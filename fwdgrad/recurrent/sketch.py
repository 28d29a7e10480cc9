"""The influence as a guess that is carried exactly, and a sketch of the rest."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from fwdgrad.recurrent.owners import at_owners, find_owners, immediate
from fwdgrad.recurrent.signs import random_signs
from fwdgrad.recurrent.step import StepAt
from fwdgrad.util.trees import Array, PyTree

Guess = Literal["diagonal", "immediate", "none"]


class _Carried(NamedTuple):
    """J ≈ D + P Q.

    P is (n, k); Q has a leaf (k, *shape) for each of θ. D has for each parameter one entry that is
    not zero, in the row of its owner: an array like the leaf.
    """

    left: Array
    right: list[Array]
    owners: list[Array]
    guess: list[Array]


@dataclass(frozen=True)
class Sketch:
    """Carry J as D + P Q: a guess D, and a matrix P Q of rank `rank` for the rest.

    With A = ∂s'/∂s and B = ∂s'/∂θ, a step has the influence J' = A (D + P Q) + B. The guess goes on
    as D' = diag(A) D + B at the owners: each parameter owns the unit that it moves most in one
    step, as a weight into a unit does. What is left, E = J' − D', is known without being made:
    uᵀE is a pass backwards through the step, a product with Q, and a look-up in D and D'. It goes
    on in two parts, with U an orthonormal basis of the columns of A P, and R = `num_random` vectors
    ω of random signs:

        E ≈ U Uᵀ E + (1/R) Σ_r ω̃_r ω̃_rᵀ E,    ω̃ = (I − U Uᵀ) ω.

    Its rank is k + R, with k = `rank`. Of its singular values the k − 1 largest stay as they are;
    the others are mixed with random signs into one product, Σ_i ε_i √σ_i u_i (Σ_i ε_i √σ_i v_i)ᵀ.
    Neither U nor D' depends on the signs, so E[P' Q'] = E: whatever the guess, the mean is J. The
    guess is a control variate of J.

    With `rank` at least n nothing is random, and this is real-time recurrent learning. With `rank`
    zero the guess is all: SnAp-1, which is biased, and exact for a state that is diagonal (a linear
    state-space model).

    A step costs k + R passes through it backwards and k forwards, and about 3 k² d operations. It
    carries (k + 2) d numbers.

    Args:
      rank: k; more than n counts as n.
      num_random: R; 0 leaves out what is not in the span of A P, so that the mean is not J.
      guess: "diagonal", with the diagonal of A, which takes n more passes forwards through a step;
        "immediate", D' = B at the owners; or "none", D = 0.

    Raises:
      TypeError, ValueError: an argument is of a wrong kind.

    Source: the guess is SnAp-1 of J. Menick et al., Practical Real Time Recurrent Learning with a
    Sparse Approximation (2020), there alone. Mixing the smallest singular values is that of F.
    Benzing et al., Optimal Kronecker-Sum Approximation of Real Time Recurrent Learning (2019).
    """

    rank: int = 16
    num_random: int = 1
    guess: Guess = "diagonal"

    def __post_init__(self) -> None:
        for name in ("rank", "num_random"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
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
        right = [jnp.zeros((number, *p.shape), step.dtype) for p in step.theta]
        return _Carried(jnp.zeros((size, number), step.dtype), right, owners, guess)

    def advance(
        self, key: Array, step: StepAt, carried: _Carried
    ) -> tuple[_Carried, PyTree, Array, list[Array]]:
        left, right, owners, guess = carried
        along, grad = step.gradient_of_value()
        if self.rank:
            grad = [g + jnp.tensordot(along @ left, q, 1) for g, q in zip(grad, right, strict=True)]
        if owners:
            looked_up = at_owners(along, owners)
            grad = [g + c * d for g, c, d in zip(grad, looked_up, guess, strict=True)]
        new_guess = self._advanced(step, owners, guess)
        if self.rank:
            left, right = self._sketched(key, step, carried, new_guess)
        return _Carried(left, right, owners, new_guess), *step.results(), grad

    def _advanced(self, step: StepAt, owners: list[Array], guess: list[Array]) -> list[Array]:
        """Return D' at the owners."""
        if not owners:
            return []
        new = immediate(step, owners)
        if self.guess == "immediate":
            return new
        diagonal = jnp.diagonal(step.push(jnp.eye(step.vector.size, dtype=step.dtype)))
        kept = at_owners(diagonal, owners)
        return [b + a * d for b, a, d in zip(new, kept, guess, strict=True)]

    def _sketched(
        self, key: Array, step: StepAt, carried: _Carried, new_guess: list[Array]
    ) -> tuple[Array, list[Array]]:
        """Return P' and Q'."""
        left, right, owners, guess = carried
        of_rest, of_mixture = jax.random.split(key)
        pushed = step.push(left)
        columns = jnp.linalg.qr(pushed)[0]
        rows = columns.T
        if self.num_random:
            shape = (len(pushed), self.num_random)
            signs = random_signs(of_rest, shape, pushed.dtype)
            rest = signs - columns @ (columns.T @ signs)
            columns = jnp.concatenate([columns, rest], axis=1)
            rows = jnp.concatenate([rows, rest.T / self.num_random])
        through, of_theta = step.pull(rows)
        mixed = rows @ pushed
        products = [jnp.tensordot(mixed, q, 1) + b for q, b in zip(right, of_theta, strict=True)]
        if owners:
            before, after = at_owners(through, owners), at_owners(rows, owners)
            parts = zip(products, before, guess, after, new_guess, strict=True)
            products = [q + b * d - a * new for q, b, d, a, new in parts]
        return _reduced(of_mixture, columns, products, left.shape[1])


def _reduced(key: Array, left: Array, right: list[Array], rank: int) -> tuple[Array, list[Array]]:
    """Return a product of a lower rank, whose mean over random signs is `left` · `right`."""
    basis, triangle = jnp.linalg.qr(left)
    flat = [triangle @ q.reshape(len(q), -1) for q in right]
    gram = jnp.sum(jnp.stack([q @ q.T for q in flat]), axis=0)
    squares, vectors = jnp.linalg.eigh(gram)  # ascending; of the columns of `basis`
    number = len(squares) - rank + 1  # of singular values that are mixed
    # An inexact scale, or one of zero for a part that is zero, keeps the mean.
    scales = jnp.sqrt(jnp.sqrt(jnp.maximum(squares[:number], 0)))
    signs = random_signs(key, (number,), left.dtype)
    inverses = jnp.where(scales > 0, 1 / jnp.where(scales > 0, scales, 1), 0)
    kept = vectors[:, number:]
    to_left = jnp.concatenate([(vectors[:, :number] @ (signs * scales))[:, None], kept], axis=1)
    to_right = jnp.concatenate([(vectors[:, :number] @ (signs * inverses))[:, None], kept], axis=1)
    shapes = [(rank, *q.shape[1:]) for q in right]
    return basis @ to_left, [
        (to_right.T @ q).reshape(shape) for q, shape in zip(flat, shapes, strict=True)
    ]
