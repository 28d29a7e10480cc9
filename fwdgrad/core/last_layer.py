"""Which parameters nothing but the loss function follows: those of the last layer."""

from collections.abc import Sequence

import jax
import numpy as np

from fwdgrad.core import checks
from fwdgrad.core.jaxprs import inlined
from fwdgrad.core.losses import Flat, Loss
from fwdgrad.core.sites import find_sites
from fwdgrad.core.trees import Array, PyTree, combine, split


def in_last_layer(loss: Loss, enter_custom_vjp: bool) -> list[bool]:
    """Of each leaf of the parameters whether the values it is used for are all last sites.

    So a gradient by these leaves alone goes back through the loss function and one layer. The
    arrays among the loss's positional arguments are what tells data from what is fixed.
    """
    leaves, structure = jax.tree.flatten(loss.theta)
    data, others = split(loss.args, lambda x: isinstance(x, (jax.Array, np.ndarray)))

    def of_arrays(leaves: Sequence[Array], data: PyTree) -> tuple[Array, PyTree]:
        return loss.of(jax.tree.unflatten(structure, leaves), combine(data, others))

    needed_by = "space=Weights(exact_last=True)"
    traced = checks.checked_jaxpr(Flat(of_arrays), leaves, data, needed_by=needed_by)
    jaxpr = inlined(traced, enter_custom_vjp).jaxpr
    sites = find_sites(jaxpr, len(leaves)).sites
    are_last = [
        [site.is_last for site in sites if parameter in site.parameters]
        for parameter in jaxpr.invars[: len(leaves)]
    ]
    return [bool(found) and all(found) for found in are_last]
