"""Noise in the parameters of a layer in place of its value, where these have far fewer entries.

A convolution reads its kernel at every pixel. So a first layer of 16 channels has 12,544 entries of
a 28×28 image, and 160 parameters. Noise Ξ_nk in the parameters W, drawn for each example n, gives
the derivatives d_nk = ⟨∂ℓ_n/∂W, Ξ_nk⟩ and the estimate

    (1/N) Σ_n (1/K) Σ_k d_nk Ξ_nk        of the expectation ∂ℓ/∂W

Its relative error grows with the number of the layer's parameters in the place of the entries.
Weights and bias have one set of K tangents, so each disturbs the other. The noise is pushed through
the layer too; noise in the value starts after it.
"""

import math

from jax.extend import core as jex_core

from fwdgrad.perturbation.post_activation import find_post_activation
from fwdgrad.perturbation.sites import Plan, Site
from fwdgrad.util.jax_internals import Program
from fwdgrad.util.shapes import surely_at_most

FEWER = 4  # times as many entries: an activation masks some, and the layer costs a pushforward


def with_kernel_noise(program: Program, plan: Plan, exact_last: bool) -> Plan:
    """Return the plan with sites at parameters in place of values with many more entries.

    Args:
      program: of one example's loss, inlined.
      plan: its sites.
      exact_last: whether last sites have no noise, and stay.
    """
    sites: list[Site] = []
    for i, site in enumerate(plan.sites):
        # What two layers read of a parameter, such as its transpose, would bring noise into both.
        others = {index for j, x in enumerate(plan.sites) if j != i for index in x.equations}
        stays = not site.per_example or (exact_last and site.is_last)
        moved = [] if stays or others & {*site.equations} else _moved(program, plan, site)
        sites += moved or [site]
    return plan._replace(sites=sites)


def _moved(program: Program, plan: Plan, site: Site) -> list[Site]:
    """Return a site for each use of a parameter in a layer; none if they are not far fewer."""
    uses = [
        (index, position)
        for index in site.equations
        for position, v in enumerate(program.eqns[index].invars)
        if not isinstance(v, jex_core.Literal) and v in site.parameters
    ]
    variables = [program.eqns[index].invars[position] for index, position in uses]
    after = find_post_activation(program, site, plan)
    entry = site.variable if after is None else after.noisy
    number = sum(math.prod(v.aval.shape) for v in variables)
    if not surely_at_most(FEWER * number, entry.aval.size):
        return []
    return [
        site._replace(
            variable=v, equations=(), parameters=frozenset([v]), read=frozenset(),
            per_example=False, operand=use, instead_of=site.variable,
        )
        for v, use in zip(variables, uses, strict=True)
    ]  # fmt: skip
