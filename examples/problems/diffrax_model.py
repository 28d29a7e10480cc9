"""An ODE of diffrax: problem._target_=examples.problems.diffrax_model.make_problem."""

import diffrax
import jax
import jax.numpy as jnp

from fwdgrad.problems import Problem

TRUE = jnp.log(jnp.array([1.1, 0.4, 0.4, 0.1]))  # of the equations that made the data
TIMES = jnp.linspace(0, 5, 20)


def lotka_volterra(t, y, log_rates):
    """Return dx/dt = αx − βxy and dy/dt = δxy − γy."""
    alpha, beta, gamma, delta = jnp.exp(log_rates)
    prey, predators = y
    meeting = prey * predators
    return jnp.stack([alpha * prey - beta * meeting, delta * meeting - gamma * predators])


def solve(log_rates, start):
    saveat, adjoint = diffrax.SaveAt(ts=TIMES), diffrax.DirectAdjoint()  # for both modes
    term, solver = diffrax.ODETerm(lotka_volterra), diffrax.Heun()
    return diffrax.diffeqsolve(
        term, solver, 0, 5, 0.1, start, log_rates, saveat=saveat, adjoint=adjoint, max_steps=64
    ).ys


def make_problem(number=384):
    """Fit the four rates to observed paths; a batch has starts (n, 2) and paths (n, 20, 2)."""
    starts = jax.random.uniform(jax.random.key(0), (number, 2), minval=1, maxval=4)
    paths = jax.jit(jax.vmap(solve, (None, 0)))(TRUE, starts)
    sets = [(starts[i::3], paths[i::3]) for i in range(3)]

    def scores(log_rates, batch):
        found = jax.vmap(solve, (None, 0))(log_rates, batch[0])
        return {"loss": jnp.mean((found - batch[1]) ** 2, (1, 2))}

    return Problem(lambda key: TRUE + 0.3 * jax.random.normal(key, (4,)), scores, *sets)
