"""Losses with solvers: differential equations by Diffrax, equations by Optimistix and Lineax."""

import jax
import jax.numpy as jnp
import pytest

from .comparison import FEW, check_estimates, check_spaces, lost_by_leaf

diffrax = pytest.importorskip("diffrax")
lineax = pytest.importorskip("lineax")
optimistix = pytest.importorskip("optimistix")

N, WIDTH = 4, 3


def data():
    x = jax.random.normal(jax.random.key(1), (N, WIDTH), "float64")
    return x, jnp.sin(x.sum(1))


def params():
    keys = jax.random.split(jax.random.key(0))
    shapes = ((WIDTH, 4), (4, WIDTH))
    w, u = (jax.random.normal(k, s, "float64") / 2 for k, s in zip(keys, shapes, strict=True))
    return {"w": w, "u": u}


def ode(adaptive, adjoint=None):
    """Return the loss of a neural differential equation, solved for each example."""
    term = diffrax.ODETerm(lambda t, x, params: jnp.tanh(x @ params["w"]) @ params["u"] - t * x)
    controller = diffrax.PIDController(1e-6, 1e-6) if adaptive else diffrax.ConstantStepSize()
    solver = diffrax.Tsit5() if adaptive else diffrax.Heun()

    def solved(params, x):
        solution = diffrax.diffeqsolve(
            term, solver, 0.0, 1.0, 0.25, x, params,
            stepsize_controller=controller, max_steps=64,
            adjoint=adjoint or diffrax.RecursiveCheckpointAdjoint(),
        )  # fmt: skip
        return solution.ys[0].sum()

    def loss(params, x, y):
        return jnp.mean((jax.vmap(solved, (None, 0))(params, x) - y) ** 2)

    return loss


def root(params, x, y):
    """Return the loss of an equilibrium layer z = tanh(z W U + x), differentiated implicitly."""

    def equation(z, of_example):
        params, x = of_example
        return z - jnp.tanh(0.5 * (z @ params["w"]) @ params["u"] + x)

    def solved(x):
        solver = optimistix.Newton(rtol=1e-12, atol=1e-12)
        return optimistix.root_find(equation, solver, x, (params, x), max_steps=30).value

    return jnp.mean((jax.vmap(solved)(x).sum(1) - y) ** 2)


def fixed_point(params, x, y):
    def iterated(z, of_example):
        params, x = of_example
        return jnp.tanh(0.5 * (z @ params["w"]) @ params["u"] + x)

    def solved(x):
        solver = optimistix.FixedPointIteration(rtol=1e-13, atol=1e-13)
        return optimistix.fixed_point(iterated, solver, x, (params, x), max_steps=256).value

    return jnp.mean((jax.vmap(solved)(x).sum(1) - y) ** 2)


def least_squares(params, x, y):
    def residual(z, of_example):
        params, x = of_example
        return jnp.concatenate([jnp.tanh(z @ params["w"]) - 0.1, z - x])

    def solved(x):
        solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
        return optimistix.least_squares(residual, solver, x, (params, x), max_steps=64).value

    return jnp.mean((jax.vmap(solved)(x).sum(1) - y) ** 2)


def linear_solve(params, x, y):
    matrix = jnp.eye(WIDTH) * 3 + params["w"] @ params["u"]

    def solved(x):
        return lineax.linear_solve(lineax.MatrixLinearOperator(matrix), x).value

    return jnp.mean((jnp.tanh(jax.vmap(solved)(x)).sum(1) - y) ** 2)


def conjugate_gradients(params, x, y):
    def solved(x):
        def apply(z):
            return 2 * z + (z @ params["w"]) @ params["w"].T

        structure = jax.ShapeDtypeStruct((WIDTH,), "float64")
        tags = lineax.positive_semidefinite_tag
        operator = lineax.FunctionLinearOperator(apply, structure, tags)
        return lineax.linear_solve(operator, x, lineax.CG(rtol=1e-13, atol=1e-13)).value

    return jnp.mean((jnp.tanh(jax.vmap(solved)(x) @ params["w"] @ params["u"]).sum(1) - y) ** 2)


BOTH = {"params['u']", "params['w']"}
PROGRAMS = {  # (loss, the primitives for which the factors of parameters are materialised)
    "adaptive steps": (ode(True), {"custom_jvp_call"}),
    "fixed steps": (ode(False), {"custom_jvp_call"}),
    "root": (root, {"custom_jvp_call"}),
    "fixed point": (fixed_point, {"custom_jvp_call"}),
    "least squares": (least_squares, {"custom_jvp_call"}),
    "linear solve": (linear_solve, set()),
}
PLAIN = {  # equal losses that jax.jvp differentiates
    "adaptive steps": ode(True, diffrax.ForwardMode()),
    "fixed steps": ode(False, diffrax.ForwardMode()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_estimate_is_that_of_jvp(name):
    loss, _ = PROGRAMS[name]
    check_estimates(loss, params(), *data(), plain=PLAIN.get(name), cases=FEW)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mean_is_the_gradient_in_each_space(name):
    loss, _ = PROGRAMS[name]
    check_spaces(loss, params(), *data())


@pytest.mark.parametrize("name", PROGRAMS)
def test_explain_lists_the_primitives_that_lose_factors(name):
    loss, lost = PROGRAMS[name]
    assert lost_by_leaf(loss, params(), *data()) == dict.fromkeys(BOTH, lost)


def test_a_solver_of_a_function_operator_loses_the_factors_that_it_reads(key):
    lost = lost_by_leaf(conjugate_gradients, params(), *data())
    assert lost == {"params['u']": set(), "params['w']": {"vprim"}}
    check_estimates(conjugate_gradients, params(), *data())
