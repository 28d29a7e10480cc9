"""Theory of an estimator's error, E‖g − ∇f‖² / ‖∇f‖².

With tangents of the weights the error depends on their number alone, and the distribution knows it.
The projection onto the span of K isotropic tangents in d dimensions has E cos² = K/d and the error
1 − cos².

Activity perturbation has a law for each example n. The estimate of the derivative by unit i is the
mean of K products d ξ_i. For one tangent, with the units j that it perturbs jointly,

    E[(d ξ_i)²] = Σ_j δ_j² + (κ − 1) δ_i²

where δ is the exact derivative and κ = E[ξ⁴], 1 for signs and 3 for normal numbers. The perturbed
units are those that are on; of the last layer, all. A layer z of m units that are on has the error

    e_zn = (1/K) Σ_i (Σ_j δ_j² + (κ − 2) δ_i²)        (of signs: (m Σ_j δ_j² − ‖δ_z‖²) / K)

and, with its input x_n and noise that is independent between examples,

    E‖g − ∇f‖² = (1/N²) Σ_n Σ_z (1 + ‖x_zn‖²) e_zn        (1 for the bias)

Block-sparse tangents share no unit: Σ_j is over the units of the block, of all layers that are
perturbed jointly, and nothing is divided by K.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from omegaconf import DictConfig

import fwdgrad
from experiments.common import from_config
from fwdgrad.problems import MLP
from fwdgrad.util.trees import Array, PyTree

# Turning round or exchanging entries of such tangents changes nothing.
_ALL_DIRECTIONS_ALIKE = (fwdgrad.Normal, fwdgrad.Rademacher, fwdgrad.Sphere, fwdgrad.Orthogonal)
_KURTOSIS = {fwdgrad.Rademacher: 1, fwdgrad.Normal: 3, fwdgrad.BlockSparse: 1}


def expected_error(config: DictConfig, params: PyTree, batch: PyTree) -> float:
    """Return the error of a `train` config's estimator, or nan if no law of it is known here.

    Args:
      config: the config of the estimator and its problem.
      params: the parameters; for activity perturbation those of an `MLP`.
      batch: the minibatch.
    """
    arguments = dict(getattr(from_config.estimator(config), "keywords", {}))
    if config.estimator.name == "backprop":
        return 0.0
    is_projected = isinstance(arguments.get("aggregation"), fwdgrad.Projection)
    changed = arguments.get("shrink") or arguments.get("clip")
    if config.estimator.name != "forward" or changed or "guess_rate" in config.estimator:
        return math.nan
    tangents, number = arguments["tangents"], arguments["num_tangents"]
    space = arguments.get("space", fwdgrad.Weights())
    if isinstance(space, fwdgrad.Weights):
        if space.exact_last or space.layerwise:  # it depends on the layers' shares in the gradient
            return math.nan
        size = sum(x.size for x in jax.tree.leaves(fwdgrad.partition(params)[0]))
        if is_projected:
            return 1 - number / size if isinstance(tangents, _ALL_DIRECTIONS_ALIKE) else math.nan
        if isinstance(tangents, fwdgrad.BlockSparse):  # it depends on the gradient in each block
            return math.nan
        try:
            return float(tangents.relative_error(size, number))
        except ValueError:  # it depends on the gradient
            return math.nan
    if is_projected or type(tangents) not in _KURTOSIS or not isinstance(params, MLP):
        return math.nan
    return float(
        _at_activities(from_config.problem(config).loss, params, batch, tangents, number, space)
    )


def expected_squared_cosine(config: DictConfig, error: float) -> float:
    """Return E cos² of an estimate of this error: exact for projections, approximate for means."""
    aggregation = getattr(from_config.estimator(config), "keywords", {}).get("aggregation")
    return 1 - error if isinstance(aggregation, fwdgrad.Projection) else 1 / (1 + error)


def _at_activities(
    loss: Any, params: MLP, batch: PyTree, tangents: Any, number: int, space: fwdgrad.Activities
) -> Array:
    def of_example(example: PyTree) -> tuple[Array, MLP]:
        gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[None], example))
        image, _ = example
        x, inputs, units = jnp.ravel(image), [], []
        for layer in params.layers:
            z = layer(x)
            inputs.append(jnp.sum(x**2))
            units.append(z > 0)
            x = jax.nn.relu(z)
        units[-1] = jnp.ones_like(units[-1])
        noisy = [
            (layer.bias, on)  # the derivative by a bias is that by the layer's outputs
            for layer, on in zip(gradient.layers, units, strict=True)
        ]
        noisy = noisy[:-1] if space.exact_last else noisy
        groups = [[z] for z in noisy] if space.layerwise else [noisy]
        errors = [e for group in groups for e in _of_group(group, tangents, number)]
        total = sum((1 + x) * e for x, e in zip(inputs, errors, strict=False))
        return jnp.asarray(total), gradient

    def add(sums: PyTree, example: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, sums, of_example(example)), None

    @jax.jit
    def relative(batch: PyTree) -> Array:
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        (error, gradient), _ = jax.lax.scan(add, zeros, batch)  # both over N² of the squares
        return error / sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient))

    return relative(batch)


def _of_group(group: list[tuple[Array, Array]], tangents: Any, number: int) -> list[Array]:
    """Return the error of each layer's estimate, of layers (δ, on) that are perturbed jointly."""
    excess = _KURTOSIS[type(tangents)] - 2
    in_blocks = isinstance(tangents, fwdgrad.BlockSparse)
    together, blocks = jnp.zeros(number), []
    for z, _ in group:
        blocks.append(jnp.arange(z.size) // -(-z.size // number) if in_blocks else 0)
        together = together.at[blocks[-1]].add(z**2 if in_blocks else jnp.sum(z**2))
    return [
        jnp.sum(jnp.where(on, together[block] + excess * z**2, 0)) / (1 if in_blocks else number)
        for (z, on), block in zip(group, blocks, strict=True)
    ]
