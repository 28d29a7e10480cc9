"""Why a forward gradient of a loss costs what it costs: form of each tangent, place of each use."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from fwdgrad.core import checks
from fwdgrad.core.estimators import backprop_value_and_grad, forward_value_and_grad, on_parameters
from fwdgrad.core.factored import Factored, is_factored
from fwdgrad.core.jaxprs import place
from fwdgrad.core.low_rank import LowRank
from fwdgrad.core.pushforward import Pushforward
from fwdgrad.core.tangents import TangentDistribution
from fwdgrad.core.trees import Array, PyTree, combine, split


@dataclass(frozen=True)
class LeafExplanation:
    """What becomes of one parameter's tangent.

    Attributes:
      name, shape, dtype: of the leaf.
      rank: of its factors, or None if its tangent is drawn dense.
      size: how many numbers are drawn for it.
      used: "operation at place" of each equation that used or kept the factors.
      lost: the same of each that had them written out.
      reason: why the tangent is dense, or "".
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    rank: int | None
    size: int
    used: tuple[str, ...]
    lost: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Cost:
    """What one compiled step costs, as XLA accounts for it: a loop's body is counted once.

    Attributes:
      operations: floating-point operations.
      bytes_accessed: bytes read and written.
      temporary_bytes: memory besides the parameters and the arguments.
    """

    operations: float
    bytes_accessed: float
    temporary_bytes: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; printed, it is a table.

    Attributes:
      leaves: one entry for each differentiable leaf.
      traced: whether the loss can be traced; if not, all tangents are pushed forward dense.
      forward, backprop: the costs of a step; backprop's is None where JAX cannot do it.
    """

    leaves: tuple[LeafExplanation, ...]
    traced: bool
    forward: Cost
    backprop: Cost | None

    def __str__(self) -> str:
        header = ("parameter", "shape", "tangent", "numbers", "where")
        rows: list[tuple[str, ...]] = [header]
        for leaf in self.leaves:
            where = [f"used by {use}" for use in leaf.used]
            where += [f"LOST, written out for {use}" for use in leaf.lost]
            where += [leaf.reason] if leaf.reason else []
            form = "dense" if leaf.rank is None else f"rank {leaf.rank}"
            shape = f"{leaf.dtype}{list(leaf.shape)}"
            rows.append((leaf.name, shape, form, f"{leaf.size:,}", where[0] if where else ""))
            rows += [("", "", "", "", line) for line in where[1:]]
        lines = _aligned(rows)
        if not self.traced:
            lines.append(
                "The loss asks for the value of a parameter, so it cannot be traced: all tangents "
                "are written out and pushed forward by jax.jvp."
            )
        costs: list[tuple[str, ...]] = [
            ("a step, by XLA's account", "forward", "backprop", "ratio")
        ]
        for name, attribute in (
            ("operations", "operations"),
            ("bytes accessed", "bytes_accessed"),
            ("temporary bytes", "temporary_bytes"),
        ):
            found = getattr(self.forward, attribute)
            other = None if self.backprop is None else getattr(self.backprop, attribute)
            numbers = ("—", "—") if not other else (f"{other:,.0f}", f"{found / other:.2f}")
            costs.append((name, f"{found:,.0f}", *numbers))
        return "\n".join([*lines, "", *_aligned(costs, right=True)])


def explain(
    fun: Callable[..., Any],
    params: PyTree,
    *args: Any,
    tangents: TangentDistribution = LowRank(),
    num_tangents: int = 1,
    has_aux: bool = False,
) -> Explanation:
    """Explains what a forward gradient of `fun` does with each parameter, and what it costs.

    The answer to "why is my model not fast?": for each leaf in which form its tangent is drawn,
    which lines of the model use its factors, and which have them written out as an array of the
    leaf's size; then the operations, the bytes and the memory of a step, that is of the estimate
    and the update p − η g, beside those of backprop. Nothing is evaluated, but both are compiled.

    Args:
      fun, params, args: as `forward_value_and_grad(fun)(key, params, *args)` takes them.
      tangents, num_tangents, has_aux: as `forward_value_and_grad` takes them.

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
        fun, tangents=tangents, num_tangents=num_tangents, has_aux=has_aux
    )
    loss, theta, _ = on_parameters(fun, params, args, {}, has_aux)
    pushforward = Pushforward(loss, theta)

    def sample(key: Array) -> PyTree:
        tangent = tangents.sample(key, theta, pushforward.splits)
        checks.check_sample(tangents, tangent, theta)
        return tangent

    drawn = jax.tree.leaves(jax.eval_shape(sample, jax.random.key(0)), is_leaf=is_factored)
    used: dict[str, dict[str, None]] = {name: {} for name in pushforward.names}
    lost: dict[str, dict[str, None]] = {name: {} for name in pushforward.names}

    def observer(equation: Any, v: Factored, kept: bool) -> None:
        for name in v.origin:
            (used if kept else lost)[name][f"{equation.primitive.name} at {place(equation)}"] = None

    def push(key: Array) -> Any:
        leaves = jax.tree.leaves(sample(key), is_leaf=is_factored)
        one = jax.tree.map(lambda x: x[None], leaves)
        return pushforward(one, observer=observer)[:2]

    jax.eval_shape(push, jax.random.key(0))
    leaves = [
        LeafExplanation(
            name=name,
            shape=v.shape,
            dtype=str(v.dtype),
            rank=v.rank if is_factored(v) else None,
            size=v.left.size + v.right.size if is_factored(v) else math.prod(v.shape),
            used=tuple(used[name]),
            lost=tuple(lost[name]),
            reason="" if is_factored(v) else _reason(tangents, uses),
        )
        for name, v, uses in zip(pushforward.names, drawn, pushforward.uses, strict=True)
    ]
    forward = _cost(value_and_grad, params, args)
    assert forward is not None
    return Explanation(
        tuple(leaves),
        pushforward.jaxpr is not None,
        forward,
        _cost(backprop_value_and_grad(fun, has_aux=has_aux), params, args),
    )


def _reason(tangents: TangentDistribution, uses: list[Any]) -> str:
    """Why a leaf's tangent is dense."""
    if any(use.split is not None for use in uses):
        return f"{tangents!r} draws it dense: factors would be no smaller"
    if not uses:
        return "the loss does not read it"
    return "no matrix: read by " + ", ".join(f"{u.operation} at {u.place}" for u in uses[:2])


def _cost(value_and_grad: Callable[..., Any], params: PyTree, args: tuple[Any, ...]) -> Cost | None:
    arrays, rest = split((params, args), lambda x: isinstance(x, jax.Array))

    def step(key: Array, arrays: PyTree) -> PyTree:
        params, args = combine(arrays, rest)
        _, grad, *_ = value_and_grad(key, params, *args)
        theta, _ = split(params, lambda x: isinstance(x, jax.Array))
        updates, _ = split(grad, lambda x: isinstance(x, jax.Array))
        return jax.tree.map(lambda p, g: p - 1e-3 * g if p is not g else p, theta, updates)

    try:
        compiled = jax.jit(step).lower(jax.random.key(0), arrays).compile()
    except (TypeError, ValueError, NotImplementedError):
        return None  # a while_loop has no reverse mode
    analysis, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return Cost(
        analysis.get("flops", math.nan),
        analysis.get("bytes accessed", math.nan),
        memory.temp_size_in_bytes if memory is not None else math.nan,
    )


def _aligned(rows: list[tuple[str, ...]], right: bool = False) -> list[str]:
    """The rows as lines of aligned columns; all but the first to the right, if `right`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if right and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
