"""One step of a recurrent program at given arguments, and its derivatives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fwdgrad.propagation.pushforward import Pushforward, trace
from fwdgrad.tangents.forms import Tangent, dense
from fwdgrad.tangents.sampling import Tangents
from fwdgrad.util.trees import (
    Array,
    PyTree,
    accumulation_dtype,
    extract_leaves,
    is_differentiable,
    require_parameters,
    zero_if_number,
)
from fwdgrad.util.validation import error_note

_FORWARD_ALONE = "influence=fwdgrad.CarriedTangents() goes through it in forward mode."
_NO_REVERSE = (
    "This form of the influence pulls cotangents back through one step, which JAX cannot do here: "
    f"{_FORWARD_ALONE}"
)
_NO_TRANSPOSE = (
    "This form of the influence pushes tangents of the state through the transpose of the step's "
    "reverse rule, which has to be linear. fwdgrad.Sketch() with guess='diagonal' does without; "
    f"{_FORWARD_ALONE}"
)


@contextmanager
def _note_on_reverse_mode() -> Iterator[None]:
    """Add a remedy to JAX's error on a step that has no reverse mode, and to no other error."""
    try:
        yield
    except ValueError as error:
        if "everse-mode" in str(error):
            error.add_note(_NO_REVERSE)
        raise


class StepAt:
    """A step (s', ℓ) = F(θ, s, x) at given arguments, with s as one vector of n entries.

    θ are the floating leaves of `params` and s those of `state`. Other leaves of the state go from
    step to step as they are. Derivatives have the accumulation dtype of θ and s.

    Args:
      step_fn: `step_fn(params, state, x)` returns (state, value).
      params, state, x: its arguments.

    Attributes:
      theta: the floating leaves of the parameters.
      vector: s, an array (n,).
      x: the input.
      dtype: of derivatives.

    Raises:
      TypeError, ValueError: `step_fn` returns something else than a state like the one it was
        given, and a real scalar; the parameters or the state have no floating leaf.
    """

    def __init__(self, step_fn: Callable[..., Any], params: PyTree, state: PyTree, x: PyTree):
        require_parameters(params)
        self._step_fn, self.x = step_fn, x
        theta, self._frame = extract_leaves(params, is_differentiable)
        self.theta = [jnp.asarray(p) for p in theta]
        _check_state(state)
        leaves, self._state_frame = extract_leaves(state, is_differentiable)
        self._leaves = [jnp.asarray(leaf) for leaf in leaves]
        self.vector, self._unravel = ravel_pytree(self._leaves)
        self.dtype = accumulation_dtype(self.vector.dtype, *[p.dtype for p in self.theta])

    def check(self) -> None:
        """Raise unless the step returns a state like the one it was given, and a real scalar."""
        jax.eval_shape(lambda: self._outputs(self.theta, self.vector)[:2])

    def check_carried(
        self, carried: Any, kind: type, sizes: Callable[[Any], tuple[Sequence[Any], int]]
    ) -> None:
        """Raise unless a carried influence is of this kind, and of these parameters and state.

        Args:
          carried: the influence.
          kind: its class.
          sizes: the influence -> the shapes of θ's leaves and the number of entries of the state
            that it was made for.
        """
        if not isinstance(carried, kind):
            raise TypeError("carry is of another form of the influence. Make it with init.")
        of_theta, size = sizes(carried)
        found = list(map(tuple, of_theta))
        expected = [tuple(p.shape) for p in self.theta]
        if found != expected or size != self.vector.size:
            raise ValueError(
                f"carry is of parameters of shapes {found} and a state of {size} entries; params "
                f"and carry.state have {expected} and {self.vector.size}. Make it with init."
            )

    def at(self, theta: Sequence[Array], vector: Array, x: PyTree) -> "StepAt":
        """Return the same step at other values of θ, s and the input."""
        state = self._state_frame.rebuild(self._unravel(vector.astype(self.vector.dtype)))
        return StepAt(self._step_fn, self._frame.rebuild(theta), state, x)

    def _outputs(self, theta: Sequence[Array], vector: Array) -> tuple[Array, Array, list[Any]]:
        """Return s', ℓ, and the other leaves of the new state."""
        state = self._state_frame.rebuild(self._unravel(vector))
        output = self._step_fn(self._frame.rebuild(theta), state, self.x)
        if not (isinstance(output, tuple) and len(output) == 2):
            raise TypeError(
                "step_fn must return a pair, (state, value); found "
                f"{type(output).__name__}. Say step_fn(params, state, x) -> (state, value)."
            )
        new_state, value = output
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise TypeError(
                "the value of step_fn, its second output, must be a real floating-point scalar; "
                f"found {jnp.result_type(value)}{list(jnp.shape(value))}."
            )
        _check_same(state, new_state)
        leaves, frame = extract_leaves(new_state, is_differentiable)
        return ravel_pytree(leaves)[0], jnp.asarray(value), list(map(jnp.asarray, frame.others))

    @cached_property
    def _pulled(self) -> Any:
        def outputs(theta: Sequence[Array], vector: Array) -> Any:
            new, value, others = self._outputs(theta, vector)
            return (new, value), others

        with _note_on_reverse_mode():
            return jax.vjp(outputs, self.theta, self.vector, has_aux=True)

    def results(self) -> tuple[PyTree, Array]:
        """Return the new state and ℓ."""
        (new, value), _, others = self._pulled
        return self._state_frame.rebuild(self._unravel(new), others), value

    def gradient_of_value(self) -> tuple[Array, list[Array]]:
        """Return ∂ℓ/∂s (n,) and ∂ℓ/∂θ."""
        (new, value), pull, _ = self._pulled
        with _note_on_reverse_mode():
            of_theta, of_state = pull((jnp.zeros_like(new), jnp.ones_like(value)))
        return of_state.astype(self.dtype), [x.astype(self.dtype) for x in of_theta]

    def pull(self, rows: Array) -> tuple[Array, list[Array]]:
        """Return rows · ∂s'/∂s, as (m, n), and rows · ∂s'/∂θ, for rows (m, n)."""
        (new, value), pull, _ = self._pulled
        with _note_on_reverse_mode():
            of_theta, of_state = jax.vmap(lambda row: pull((row, jnp.zeros_like(value))))(
                rows.astype(new.dtype)
            )
        return of_state.astype(self.dtype), [x.astype(self.dtype) for x in of_theta]

    def push(self, columns: Array) -> Array:
        """Return ∂s'/∂s · columns, as (n, k), for columns (n, k)."""
        (new, value), pull, _ = self._pulled
        # The transpose of `pull`, not `jax.jvp`, so that a `custom_vjp` function has the same
        # derivative, its own rule, in both directions.
        with error_note(_NO_TRANSPOSE):
            push = jax.linear_transpose(lambda row: pull((row, jnp.zeros_like(value)))[1], new)
            (pushed,) = jax.vmap(push, in_axes=1, out_axes=1)(columns.astype(self.vector.dtype))
        return pushed.astype(self.dtype)

    def jacobian(self) -> Array:
        """Return A = ∂s'/∂s, an array (n, n), by n passes backwards."""
        return self.pull(jnp.eye(self.vector.size, dtype=self.dtype))[0]

    @cached_property
    def pushforward(self) -> Pushforward:
        """The step, along tangents of θ and of s together."""

        def value_and_rest(leaves: Sequence[Array]) -> tuple[Array, Any]:
            new, value, others = self._outputs(leaves[:-1], leaves[-1])
            return value, (new, others)

        leaves = [*self.theta, self.vector]
        names = [f"params{name}" for name in self._frame.names]
        traced = trace(value_and_rest, leaves).entered(len(leaves))
        return Pushforward(traced, leaves, [*names, "state"])

    def push_along(self, tangents: Tangents, of_state: Array) -> tuple[PyTree, Array, Array, Array]:
        """Return the new state, ℓ, the K derivatives of ℓ, and the tangents (K, n) of s'.

        Args:
          tangents: for each leaf of θ K tangents, in any form.
          of_state: K tangents of s, an array (K, n).
        """
        along: list[Tangent] = [*tangents, of_state.astype(self.vector.dtype)]
        number = len(of_state)
        value, derivatives, (new, others), pushed = self.pushforward.with_tangents_of_aux(
            along, num_tangents=number
        )
        of_new = jnp.zeros((number, *new.shape)) if pushed[0] is None else dense(pushed[0])
        state = self._state_frame.rebuild(self._unravel(new), others)
        return state, value, derivatives.astype(self.dtype), of_new.astype(self.dtype)

    def gradient(self, of_leaves: Sequence[Array]) -> PyTree:
        """Return a gradient, a pytree like the parameters, from those by the leaves."""
        cast = [g.astype(p.dtype) for g, p in zip(of_leaves, self.theta, strict=True)]
        return self._frame.rebuild(cast, map(zero_if_number, self._frame.others))


def _check_state(state: PyTree) -> None:
    """Raise unless a state has a real floating array, and nothing that would be lost silently."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in leaves:
        name = f"state{jax.tree_util.keystr(path)}"
        if isinstance(leaf, (float, complex)) and not isinstance(leaf, np.generic):
            raise TypeError(
                f"{name} is a Python {type(leaf).__name__}; make it an array: "
                f"jnp.asarray({leaf!r})."
            )
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} has the complex dtype {leaf.dtype}; only real entries are differentiated. "
                "Hold its real and imaginary parts as two real leaves."
            )
    if not any(is_differentiable(leaf) for _, leaf in leaves):
        raise ValueError(
            f"state must have a floating-point array; found {jax.tree.structure(state)}. "
            "A program without a state has an ordinary gradient: forward_value_and_grad."
        )


def _check_same(before: PyTree, after: PyTree) -> None:
    """Raise unless a new state has the structure, shapes and dtypes of the old one."""
    structures: list[Any] = [jax.tree.structure(x) for x in (before, after)]
    if structures[0] != structures[1]:
        raise TypeError(
            f"step_fn must return a state of the structure that it was given, {structures[0]}; "
            f"found {structures[1]}."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    for (path, old), new in pairs:
        found = [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in (old, new)]
        if found[0] != found[1]:
            raise TypeError(
                f"step_fn must return a state like the one it was given: "
                f"state{jax.tree_util.keystr(path)} was {found[0]}; found {found[1]}."
            )
