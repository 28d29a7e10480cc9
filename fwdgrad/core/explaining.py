"""Finding out why a forward gradient of a loss costs what it costs."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fwdgrad.core.activities import Activities
from fwdgrad.core.blocks import Blocks
from fwdgrad.core.estimators import backprop_value_and_grad, forward_value_and_grad
from fwdgrad.core.explanation import Cost, Explanation, LeafExplanation, SiteExplanation
from fwdgrad.core.factored import Factored, is_factored
from fwdgrad.core.forms import is_structured
from fwdgrad.core.jaxprs import place
from fwdgrad.core.losses import Loss
from fwdgrad.core.low_rank import LowRank
from fwdgrad.core.sampling import Tangents
from fwdgrad.core.spaces import Space, Weights
from fwdgrad.core.tangents import TangentDistribution
from fwdgrad.core.trees import Array, PyTree, is_differentiable, take_out


def explain(
    fun: Callable[..., Any],
    params: PyTree,
    *args: Any,
    tangents: TangentDistribution = LowRank(),
    num_tangents: int = 1,
    space: Space = Weights(),
    has_aux: bool = False,
) -> Explanation:
    """Explains what a forward gradient of `fun` does with each parameter, and what it costs.

    The answer to "why is my model not fast?": for each leaf in which form its tangent is drawn,
    which lines of the model use its factors, and which have them written out as an array of the
    leaf's size; then the operations, the bytes and the memory of a step, that is of the estimate
    and the update p − η g, beside those of backprop. Nothing is evaluated, but both are compiled.
    With `space=Activities()` there are, in the place of `leaves`, `sites`: each value that gets
    noise, or is exact, and the parameters that learn by it.

    Args:
      fun, params, args: as `forward_value_and_grad(fun)(key, params, *args)` takes them; bind
        keyword arguments of fun by `functools.partial`.
      tangents, num_tangents, space, has_aux: as `forward_value_and_grad` takes them, but the
        tangents are of low rank, not normal, if nothing is said.

    Returns:
      An `Explanation`; print it.

    Raises:
      TypeError, ValueError: as `forward_value_and_grad`.

    >>> def loss(params, x):
    ...     return jax.numpy.mean((x @ params["w"] + params["b"]) ** 2)
    >>> params = {"w": jax.numpy.ones((30, 20)), "b": jax.numpy.ones(20)}
    >>> explanation = explain(loss, params, jax.numpy.ones((5, 30)))
    >>> [(leaf.name, leaf.rank, leaf.size) for leaf in explanation.leaves]
    [("params['b']", None, 20), ("params['w']", 1, 50)]
    """
    value_and_grad = forward_value_and_grad(
        fun, tangents=tangents, num_tangents=num_tangents, space=space, has_aux=has_aux
    )
    backprop = backprop_value_and_grad(fun, has_aux=has_aux)
    loss = Loss(fun, params, args, {}, has_aux)
    leaves: tuple[LeafExplanation, ...] = ()
    sites: tuple[SiteExplanation, ...] = ()
    traced = True
    if isinstance(space, Activities):
        sites = _sites(space, loss)
    else:
        leaves, traced = _leaves(loss, space, tangents, num_tangents)
    return Explanation(
        leaves,
        sites,
        traced,
        f"{num_tangents} × {tangents!r}",
        _cost(value_and_grad, params, args) if traced else None,
        _cost(backprop, params, args, may_fail=True) if traced else None,
    )


def _leaves(
    loss: Loss, space: Space, tangents: TangentDistribution, num_tangents: int
) -> tuple[tuple[LeafExplanation, ...], bool]:
    """What becomes of each leaf's tangent, and whether the loss is propagated through."""
    at = (space if isinstance(space, Weights) else Weights()).at(loss, num_tangents, True)
    pushforward = at.pushforward

    def sample(key: Array) -> Tangents:
        return at.draw(tangents, jax.random.split(key, num_tangents))

    drawn = jax.eval_shape(sample, jax.random.key(0))
    used: dict[str, dict[str, None]] = {name: {} for name in pushforward.names}
    lost: dict[str, dict[str, None]] = {name: {} for name in pushforward.names}

    def observer(equation: Any, v: Factored, kept: bool) -> None:
        for name in v.origin:
            (used if kept else lost)[name][f"{equation.primitive.name} at {place(equation)}"] = None

    def push(key: Array) -> Any:
        return pushforward(sample(key), num_tangents=num_tangents, observer=observer)[:2]

    traced = pushforward.jaxpr is not None
    if traced:
        jax.eval_shape(push, jax.random.key(0))
    else:
        lost = {name: {"jax.jvp of the whole loss": None} for name in pushforward.names}
    exact = tuple(
        LeafExplanation(
            name, x.shape, str(x.dtype), rank=None, blocks=None,
            size=0, used=(), lost=(), reason="the last layer: its exact gradient",
        )
        for name, x in at.exact.items()
    )  # fmt: skip
    leaves = tuple(
        LeafExplanation(
            name=name,
            shape=x.shape,
            dtype=str(x.dtype),
            rank=v.rank if is_factored(v) else None,
            blocks=v.number if isinstance(v, Blocks) else None,
            size=sum(part.size for part in jax.tree.leaves(v)),
            used=tuple(used[name]),
            lost=tuple(lost[name]) if is_factored(v) else (),
            reason="" if is_structured(v) else _reason(tangents, uses),
        )
        for name, x, v, uses in zip(
            pushforward.names, at.leaves, drawn, pushforward.uses, strict=True
        )
    )
    return leaves + exact, traced


def _sites(space: Activities, loss: Loss) -> tuple[SiteExplanation, ...]:
    return tuple(
        SiteExplanation(place, shape, tuple(loss.names[i] for i in parameters), kind)
        for place, shape, parameters, kind in space.at(loss, 1, True).describe()
    )


def _reason(tangents: TangentDistribution, uses: list[Any]) -> str:
    """Why a leaf's tangent is dense."""
    if any(use.split is not None for use in uses):
        return f"drawn dense by {tangents!r}"
    if not uses:
        return "the loss does not read it"
    return "no matrix: read by " + ", ".join(f"{u.operation} at {u.place}" for u in uses[:2])


def _cost(
    value_and_grad: Callable[..., Any],
    params: PyTree,
    args: tuple[Any, ...],
    may_fail: bool = False,
) -> Cost | None:
    theta, params_around = take_out(params, is_differentiable)
    arrays, args_around = take_out(args, lambda x: isinstance(x, (jax.Array, np.ndarray)))

    def step(key: Array, theta: list[Array], arrays: list[Array]) -> list[Array]:
        whole = params_around.filled(theta), *args_around.filled(arrays)
        _, grad = value_and_grad(key, *whole)
        of_leaves, _ = take_out(grad, is_differentiable)
        return [p - 1e-3 * g for p, g in zip(theta, of_leaves, strict=True)]

    try:
        compiled = jax.jit(step).lower(jax.random.key(0), theta, arrays).compile()
    except Exception:
        if may_fail:  # a while_loop has no reverse mode
            return None
        raise
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Cost(
        analysis.get("flops", math.nan),
        analysis.get("bytes accessed", math.nan),
        memory.temp_size_in_bytes if memory is not None else math.nan,
    )
