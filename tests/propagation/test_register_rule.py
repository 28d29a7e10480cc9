"""Rules that users register: validated results, order of rules, primitives of the user."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

import fwdgrad
from fwdgrad.propagation.facts import fact_of
from tests.tangents.test_base import Diagonal, Diagonals, W, X, loss


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda y, t: ([y], [t[0]]), r"tangents float32\[5, 4\].* must be float32\[1, 5, 4\]"),
        (lambda y, t: ([y, y], [t]), r"outputs float32.*; they must be float32\[5, 4\]"),
        (lambda y, t: ([y], [t, t]), r"tangents float32"),
        (lambda y, t: ([y], [t.astype("bfloat16")]), r"tangents bfloat16.* must be float32"),
        (lambda y, t: y, r"must return a pair of lists"),
    ],
)
def test_a_rule_with_outputs_of_wrong_shape_or_dtype_is_an_error(result, message, register, key):
    def rule(context, equation, primals, tangents):
        y = equation.primitive.bind(*primals, **equation.params)
        return result(y, jnp.zeros((1, *y.shape)))

    register("dot_general", rule, form=Diagonal)
    estimate = fwdgrad.forward_value_and_grad(loss, tangents=Diagonals())
    with pytest.raises(ValueError, match=rf"registered for dot_general .*{message}"):
        estimate(key, W, X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.sin, lambda: None), "primitive must be a primitive, or the name of one of JAX"),
        (("sin", 3), "rule must be a function"),
        (("sin", lambda: None, jax.Array), "form must be a class of structured tangents"),
    ],
)
def test_arguments_of_a_wrong_kind_are_errors(arguments, message):
    primitive, rule, *form = arguments
    with pytest.raises(TypeError, match=message):
        fwdgrad.register_rule(primitive, rule, **({"form": form[0]} if form else {}))


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match=r"found 'dot_genral', .* Give the primitive itself"):
        fwdgrad.register_rule("dot_genral", lambda *_: NotImplemented)


@pytest.mark.parametrize(
    "name",
    ["neg", "transpose", "tanh", "dot_general", "tile", "polynomial", "split", "pallas_call"],
)
def test_a_users_primitive_with_the_name_of_one_of_jax_has_no_rule_of_it(name, key):
    """The primitive is a cumulative sum, whatever its name says."""

    def loss_of(name):
        cumulative = jex_core.Primitive(name)
        cumulative.def_impl(lambda x: jnp.cumsum(x, -1))
        cumulative.def_abstract_eval(lambda x: x)
        ad.deflinear2(cumulative, lambda ct, x: [jnp.cumsum(ct[..., ::-1], -1)[..., ::-1]])
        batching.defvectorized(cumulative)
        return lambda w, x: jnp.mean(jnp.square(cumulative.bind(x @ cumulative.bind(w))))

    for options in (
        {"tangents": fwdgrad.LowRank()},
        {"tangents": fwdgrad.BlockSparse(), "num_tangents": 2},
        {"space": fwdgrad.Activities(), "tangents": fwdgrad.Rademacher()},
    ):
        found, expected = (
            fwdgrad.forward_value_and_grad(loss_of(each), **options)(key, W, X)
            for each in (name, "of_a_user")
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_rule_that_returns_notimplemented_falls_back_to_the_previous_rule(register):
    calls = []

    def decline(*args):
        calls.append(args)
        return NotImplemented

    register("dot_general", decline)
    (leaf,) = fwdgrad.explain(loss, W, X).leaves
    assert calls and leaf.rank == 1 and leaf.used and not leaf.lost


def test_a_rule_for_a_call_comes_before_entering_it(register, key):
    calls = []
    register("jit", lambda *args: calls.append(args) or NotImplemented)
    estimate = fwdgrad.forward_value_and_grad(jax.jit(loss), tangents=fwdgrad.LowRank())
    value, _ = estimate(key, W, X)
    assert calls
    np.testing.assert_allclose(value, loss(W, X), rtol=1e-6)


def primitive_of(fun):
    """A primitive of a user that maps entries by a function."""
    primitive = jex_core.Primitive("of_a_user")
    primitive.def_impl(fun)
    primitive.def_abstract_eval(lambda x: x)
    ad.defjvp(primitive, lambda t, x: jax.jvp(fun, (x,), (t,))[1])
    batching.defvectorized(primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(fun, multiple_results=False))
    return primitive


def test_blocks_are_kept_through_a_users_elementwise_primitive(key):
    cube = primitive_of(lambda x: x**3)

    def of_user(w, x):
        return jnp.sum(cube.bind(x @ w) @ w.T)

    def of_jax(w, x):
        return jnp.sum((x @ w) ** 3 @ w.T)

    options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 2}
    expected = fwdgrad.forward_value_and_grad(of_jax, **options)(key, W, X)
    lost = {}
    for stated in (False, True):
        undo = fwdgrad.register_facts(cube, elementwise=stated)
        found = fwdgrad.forward_value_and_grad(of_user, **options)(key, W, X)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
        lost[stated] = fwdgrad.explain(of_user, W, X, **options).leaves[0].lost
        undo()
    assert "of_a_user" in lost[False][0] and lost[True] == ()


def test_noise_enters_after_a_users_linear_primitive_and_where_slopes_are_not_zero(key):
    scale, relu = primitive_of(lambda x: 3 * x), primitive_of(lambda x: jnp.maximum(x, 0))

    def loss_of(scale, relu):
        return lambda w, x: jnp.mean(jnp.square(relu(scale(x @ w))))

    options = {"space": fwdgrad.Activities(), "tangents": fwdgrad.Rademacher()}
    expected = loss_of(lambda x: 3 * x, jax.nn.relu)
    undone = [
        fwdgrad.register_facts(scale, elementwise=True, linear=True),
        fwdgrad.register_facts(relu, elementwise=True),
    ]
    found, by_jax = (
        fwdgrad.forward_value_and_grad(fun, **options)(key, W, X)
        for fun in (loss_of(scale.bind, relu.bind), expected)
    )
    for undo in undone:
        undo()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, by_jax)


def test_a_parameter_is_followed_through_a_primitive_with_facts_and_a_rule(register):
    scale = primitive_of(lambda x: 3 * x)

    def loss(w, x):
        return jnp.mean(jnp.square(x @ scale.bind(w)))

    def rule(context, equation, primals, tangents):
        (v,) = tangents
        return [equation.primitive.bind(*primals)], [v.replace(3 * v.left, v.right)]

    register(scale, rule)
    ranks = [fwdgrad.explain(loss, W, X).leaves[0].rank]
    undo = fwdgrad.register_facts(scale, elementwise=True, linear=True)
    ranks.append(fwdgrad.explain(loss, W, X).leaves[0].rank)
    undo()
    assert [*ranks, fwdgrad.explain(loss, W, X).leaves[0].rank] == [None, 1, None]


@pytest.mark.parametrize("primitive", ["sin", jnp.sin, jex_core.primitives.sin_p])
def test_facts_of_what_is_no_primitive_of_the_user_are_an_error(primitive):
    with pytest.raises(TypeError, match="primitive must be a primitive of your own; found"):
        fwdgrad.register_facts(primitive, elementwise=True)


def rules_that(calls, *names):
    """Rules that add their names to a dict, and decline."""
    return [lambda *_, name=name: calls.setdefault(name) or NotImplemented for name in names]


@pytest.mark.parametrize("kept", ["A", "B"])
def test_each_undo_takes_away_its_own_rule(kept):
    def asked():
        calls.clear()
        (leaf,) = fwdgrad.explain(loss, W, X).leaves
        assert leaf.rank == 1 and leaf.used and not leaf.lost  # by the rule that is built in
        return [*calls]

    calls = {}
    rules = rules_that(calls, "A", "B")
    undone = {n: fwdgrad.register_rule("dot_general", r) for n, r in zip("AB", rules, strict=True)}
    found = [asked()]
    undo = undone.pop("A" if kept == "B" else "B")
    for each in (undo, undo, undone[kept]):  # the second time nothing is left to take away
        each()
        found.append(asked())
    assert found == [["B", "A"], [kept], [kept], []]


@pytest.mark.parametrize("facts_first", [True, False])
def test_an_undo_of_facts_leaves_rules_and_an_undo_of_rules_leaves_facts(facts_first):
    cube, calls = primitive_of(lambda x: x**3), {}
    (rule,) = rules_that(calls, "rule")

    def found():
        calls.clear()
        options = {"tangents": fwdgrad.BlockSparse(), "num_tangents": 2}
        of = fwdgrad.explain(lambda w, x: jnp.sum(cube.bind(x @ w) @ w.T), W, X, **options)
        keeps_blocks = not any("of_a_user" in each for each in of.leaves[0].lost)
        return {*calls, *(["facts"] if keeps_blocks else [])}

    undone = {
        "facts": lambda: fwdgrad.register_facts(cube, elementwise=True),
        "rule": lambda: fwdgrad.register_rule(cube, rule, form=fwdgrad.Blocks),
    }
    first, second = undone if facts_first else reversed(undone)
    undone[first], undone[second] = undone[first](), undone[second]()
    assert found() == {"facts", "rule"}
    undone[first]()
    assert found() == {second}
    undone[second]()
    assert found() == set()


def test_facts_that_are_stated_twice_hold_until_both_are_taken_away():
    cube = primitive_of(lambda x: x**3)
    undone = [fwdgrad.register_facts(cube, elementwise=True) for _ in range(2)]
    found = [fact_of(cube).elementwise]
    for undo in undone:
        undo()
        found.append(fact_of(cube).elementwise)
    assert found == [True, True, False]


def test_an_evaluation_keeps_the_rules_with_which_it_began(key):
    calls, undone = [], []

    def new(*_):
        calls.append("new")
        return NotImplemented

    def old(*_):
        calls.append("old")
        undone.append(fwdgrad.register_rule("dot_general", new))
        return NotImplemented

    undone.append(fwdgrad.register_rule("dot_general", old))
    estimate = fwdgrad.forward_value_and_grad(
        lambda w, x: jnp.sum(x @ w @ w.T), tangents=fwdgrad.LowRank()
    )
    estimate(key, W, X)
    undone.pop(0)()
    estimate(key, W, X)
    for undo in undone:
        undo()
    assert calls[:2] == ["old", "old"] and set(calls[2:]) == {"new"}


@pytest.mark.parametrize(
    ("name", "fun"),
    [("neg", jax.lax.neg), ("split", lambda y: jax.lax.split(y, (2, 2), axis=1)[0])],
)
def test_a_primitive_of_jax_and_its_name_are_one(name, fun, register):
    """JAX does not publish `split`."""
    calls = {}
    primitive = jax.make_jaxpr(fun)(jnp.ones((5, 4))).eqns[0].primitive
    for key, rule in zip((primitive, name) * 2, rules_that(calls, *"ABCD"), strict=True):
        register(key, rule)
    fwdgrad.explain(lambda w, x: jnp.sum(fun(x @ w)), W, X)
    assert primitive.name == name and [*calls] == ["D", "C", "B", "A"]
