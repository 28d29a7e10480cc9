"""`compare` against exact laws of the variance; estimators that fail; wrong arguments."""

import math
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from fwdgrad.diagnostics.comparison import EstimatorComparison, EstimatorRow
from fwdgrad.diagnostics.estimate_quality import Precision, measure_quality
from fwdgrad.estimators.value_and_grad import ValueAndGrad
from fwdgrad.util.intervals import Interval, exact
from tests.oracle import normal
from tests.perturbation.activity_losses import LOSSES

D = 12
W, X, Y = normal(0, D), normal(1, (6, D)), normal(2, 6)
forward = fwdgrad.forward_value_and_grad


def quadratic(w, x, y):
    return jnp.mean((x @ w - y) ** 2) / 2


def near(interval, expected, *, times=2.5):
    """The value is within so many half-widths of the expected one; the draws are fixed."""
    half = (interval.high - interval.low) / 2
    return abs(interval.value - expected) <= times * half


def compare(fun=quadratic, params=W, *args, **options):
    options = {"max_keys": 800, "max_seconds": 20.0, "show_progress": False, **options}
    return fwdgrad.compare(fun, params, *(args or (X, Y)), **options)


@pytest.fixture(scope="module")
def result():
    """Estimators of a linear-quadratic loss whose variance has a law for any gradient."""
    return compare(
        estimators={
            "backprop": fwdgrad.backprop_value_and_grad,
            "normal": forward,
            "signs, K = 4": partial(forward, tangents=fwdgrad.Rademacher(), num_tangents=4),
            "orthogonal": partial(forward, tangents=fwdgrad.Orthogonal(), num_tangents=D),
            "projection": partial(forward, num_tangents=3, aggregation=fwdgrad.Projection()),
            "halved": lambda fun: Halved(fun),
        }
    )


class Halved(ValueAndGrad):
    """Half of the estimate by one normal tangent: slope ½, bias ¼, variance (d + 1)/4."""

    def __call__(self, key, params, *args):
        value, grad = forward(self.fun)(key, params, *args)
        return value, grad / 2


def test_variance_slope_and_bias_are_those_of_the_law(result):
    for name, variance, slope, bias in [
        ("normal", D + 1, 1, 0),
        ("signs, K = 4", (D - 1) / 4, 1, 0),
        ("projection", 3 / D * (1 - 3 / D), 3 / D, (1 - 3 / D) ** 2),
        ("halved", (D + 1) / 4, 0.5, 0.25),
    ]:
        row = result[name]
        assert near(row.variance, variance) and near(row.slope, slope), row
        assert near(row.bias, bias), row
        assert row.variance.n == 16 and row.num_keys % 16 == 0


def test_the_cosine_of_a_projection_has_its_law(result):
    """The squared cosine is Beta(K/2, (d − K)/2): E cos = Γ((K+1)/2) Γ(d/2) / Γ(K/2) Γ((d+1)/2)."""
    log = math.lgamma(2) + math.lgamma(D / 2) - math.lgamma(1.5) - math.lgamma((D + 1) / 2)
    assert near(result["projection"].cosine, math.exp(log))


def test_an_exact_gradient_is_known_by_the_first_round(result):
    for name in ("backprop", "orthogonal"):
        row = result[name]
        assert (
            row.is_exact and row.num_keys == 32 and row.cosine.value == pytest.approx(1, abs=1e-5)
        )
    assert not result["normal"].is_exact and result["normal"].num_keys > 32


def test_costs_of_a_step(result):
    for row in result.rows:
        assert row.seconds > 0 and row.relative_time > 0 and row.compile_seconds > 0
        assert row.total_bytes >= W.nbytes + row.temporary_bytes and row.operations > 0
    assert result.loss_seconds > 0 and result.num_turns >= 1
    # The minibatch is not in the total, whether the loss reads all of it or not.
    large = jnp.ones((1000, D))
    (row,) = compare(
        lambda w, x, y, unread: quadratic(w, x, y),
        *(W, large, jnp.ones(1000), jnp.ones((1000, 99))),
        estimators={"one": forward},
        max_keys=6,
    ).rows
    assert W.nbytes <= row.total_bytes - row.temporary_bytes < large.nbytes


def test_the_result_is_data_and_a_table(result):
    text = str(result)
    lines = text.splitlines()
    assert [line[: len(row.name)] for line, row in zip(lines[1:], result.rows, strict=False)] == [
        row.name for row in result.rows
    ]
    assert "n = 16 groups of keys" in text and f"n = {result.num_turns} turns" in text
    assert text.endswith(result.recommendation)
    assert result.recommendation.startswith(("Use backprop", "Use orthogonal"))
    with pytest.raises(KeyError, match="no estimator 'spsa' was compared; there are 'backprop', "):
        result["spsa"]


def while_loop(w, x, y):
    """The quadratic loss times 3, by a loop that has no reverse mode."""

    def add(carry):
        return carry[0] + quadratic(w, x, y), carry[1] + 1

    return jax.lax.while_loop(lambda carry: carry[1] < 3, add, (0.0, 0))[0]


def test_a_loss_without_reverse_mode_has_variances_alone():
    chosen = {"backprop": fwdgrad.backprop_value_and_grad, "normal": forward}
    found = compare(while_loop, estimators=chosen)
    assert found.gradient_note.startswith("ValueError: Reverse-mode differentiation does not work")
    row = found["normal"]
    squared = float(jnp.sum(jax.grad(quadratic)(W, X, Y) ** 2)) * 9
    assert near(row.variance, (D + 1) * squared)
    assert all(math.isnan(x.value) for x in (row.cosine, row.slope, row.bias))
    assert found["backprop"].note == found.gradient_note and math.isnan(found["backprop"].seconds)
    assert found.recommendation.startswith("Use normal: it has the least variance for its time")
    assert "not over ‖∇f‖², since there is no exact gradient (ValueError" in str(found)


def test_a_gradient_of_zero_is_none_to_compare_with():
    found = compare(lambda w, *_: 0.0 * jnp.sum(w), W, estimators={"normal": forward}, max_keys=6)
    assert found.gradient_note == "the gradient is zero at these params"
    assert found["normal"].variance.value == 0


@pytest.mark.parametrize(
    ("fun", "note"),
    [
        (quadratic, ""),
        (
            lambda w, x, y: jnp.sum((x @ w - y) ** 2) / 2,
            "fun is a sum over the examples, and space=",
        ),
        (lambda w, x, y: quadratic(w, x - x.mean(0), y), "ValueError: fun mixes the examples of"),
        (lambda w, x, y: quadratic(w, x.reshape(2, 3, D)[0], y[:3]), "TypeError: cannot reshape"),
    ],
)
def test_activities_are_compared_where_their_examples_are_independent(fun, note):
    one = {"at": partial(forward, space=fwdgrad.Activities()), "weights": forward}
    found = compare(fun, estimators=one, max_keys=100)
    row = found["at"]
    if "Error" in note:
        assert math.isnan(row.seconds) and f"at: {row.note}" in str(found)
    else:
        assert row.cosine.value > 0 and row.seconds > 0
        assert near(row.slope, 1 / 6 if note else 1)
    assert row.note.startswith(note) and not found["weights"].note


def test_noise_that_examples_share_is_noted():
    loss, params, args = LOSSES["scanned"]()
    one = {"at": partial(forward, space=fwdgrad.Activities())}
    (row,) = compare(loss, params, *args, estimators=one, max_keys=6).rows
    assert row.note.startswith("noisy sites: 1; 1 of them parameters themselves (in a scan, ")


def test_an_estimator_that_fails_says_why_and_the_others_are_compared():
    def broken(fun):
        def value_and_grad(key, params, *args):
            raise RuntimeError("no such device\nsecond line")

        return value_and_grad

    def infinite(fun):
        return lambda key, params, *args: (fun(params, *args), jnp.full_like(params, jnp.inf))

    chosen = {"broken": broken, "infinite": infinite, "normal": forward}
    found = compare(estimators=chosen, max_keys=6)
    assert found["broken"].note == "RuntimeError: no such device"
    assert found["infinite"].note == "an estimate is not finite, so the step was not timed"
    assert found["normal"].variance.n == 3 and "Use normal of these" in found.recommendation
    only = compare(estimators={"broken": broken}, max_keys=6)
    assert only.recommendation == "No estimator could be measured; the notes say why."


@pytest.mark.thorough
def test_the_usual_estimators():
    """On a network in which all of them are defined; the parameters stay the user's."""

    def loss(params, x, y):
        hidden = jax.nn.relu(x @ params["w"] + params["b"])
        return jnp.mean((hidden @ params["u"] - y[:, None]) ** 2)

    params = {"w": np.asarray(normal(3, (D, 8))), "b": jnp.zeros(8, jnp.bfloat16)}
    params |= {"u": normal(4, (8, 1)), "steps": 3}
    found = compare(loss, params, np.asarray(X), Y, max_keys=32)
    assert [row.note for row in found.rows if "layer-wise" not in row.name] == [""] * 7
    layerwise = found["activities, layer-wise, exact last, 8 blocks"]
    assert layerwise.note.startswith("noisy sites: 1, each with 8 tangents of its own")
    cosines = {row.name: row.cosine.value for row in found.rows}
    assert cosines["backprop"] == pytest.approx(1, abs=1e-3)
    assert cosines["low rank"] < cosines["low rank, K = 8"] < cosines["backprop"]
    assert cosines["activities"] < cosines["activities, layer-wise, exact last, 8 blocks"]
    assert not params["u"].is_deleted() and isinstance(params["w"], np.ndarray)


def test_a_guess_beside_the_parameters():
    """A guess of zero changes nothing but the memory."""
    chosen = {"plain": forward, "guided": lambda fun: forward(fun).guided()}
    found = compare(estimators=chosen, max_keys=64)
    assert found["guided"].cosine.value == pytest.approx(found["plain"].cosine.value, rel=1e-4)
    assert found["guided"].total_bytes > found["plain"].total_bytes


def test_the_key_decides_the_numbers():
    options = {"estimators": {"normal": forward}, "max_keys": 32}
    first, again, other = (compare(key=jax.random.key(i), **options) for i in (1, 1, 2))
    assert first["normal"].cosine == again["normal"].cosine != other["normal"].cosine
    of_another_kind = compare(key=jax.random.key(1, impl="rbg"), **options)["normal"]
    assert of_another_kind.note == "" and of_another_kind.cosine != first["normal"].cosine


def test_examples_may_be_keys():
    """One for each example, as dropout has them."""

    def loss(w, x, keys):
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (D,)))(keys)
        return jnp.mean(((x * kept) @ w - 1) ** 2)

    one = {"at": partial(forward, space=fwdgrad.Activities())}
    (row,) = compare(loss, W, X, jax.random.split(jax.random.key(0), 6), estimators=one).rows
    assert row.note == "" and near(row.slope, 1)


def draws_of(half_width, max_keys=10_000, seconds=60.0):
    def estimate(key, given):
        return [given * (1 + jax.random.normal(key))]

    target = jnp.array([1.0])
    precision = Precision(half_width, max_keys, seconds)
    return measure_quality(estimate, target, jax.random.key(0), [target], precision)


def test_as_many_keys_as_the_precision_takes():
    """The variance of a normal number: the half-width of n groups of keys is about 2.13 √(2/n)."""
    found = {width: draws_of(width) for width in (0.5, 0.1)}
    for width, quality in found.items():
        half = (quality.variance.high - quality.variance.low) / 2
        assert half <= width * quality.variance.value and near(quality.variance, 1)
    assert found[0.5].num_keys < 300 < found[0.1].num_keys


def test_limits_of_keys_and_of_seconds():
    assert draws_of(1e-3, max_keys=100).num_keys == 96
    hasty = draws_of(1e-3, seconds=1e-9)
    assert hasty.num_keys == 6 and hasty.variance.n == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fun": 3}, TypeError, "fun must be a function"),
        ({"key": 3}, TypeError, "key must be a typed PRNG key"),
        ({"half_width": 0}, ValueError, "half_width must be positive"),
        ({"half_width": "a"}, TypeError, "half_width must be a positive number; found 'a'"),
        ({"max_seconds": -1}, ValueError, "max_seconds must be positive"),
        ({"max_keys": 5}, ValueError, "max_keys must be at least 6, 3 groups of 2 keys"),
        ({"max_keys": 9.5}, TypeError, "max_keys must be an integer"),
        ({"estimators": {}}, TypeError, "estimators must be a mapping from names"),
        ({"estimators": [forward]}, TypeError, "estimators must be a mapping from names"),
        (
            {"estimators": {"mine": forward(quadratic)}},
            TypeError,
            r"estimators\['mine'\] must be a function from a loss to its estimator.*without the",
        ),
        ({"estimators": {"mine": lambda fun: 3}}, TypeError, r"estimators\['mine'\] must be"),
        (
            {"estimators": {"mine": partial(forward, has_report=True)}},
            TypeError,
            r"estimators\['mine'\] must return .*Leave has_aux and has_report out",
        ),
        ({"compiler_options": 3}, TypeError, "compiler_options must be a mapping"),
        (
            {"compiler_options": {"xla_tpu_option": 1, "xla_no_option": 1}},
            jax.errors.JaxRuntimeError,
            "xla_no_option",
        ),
        ({"params": 3}, ValueError, "params has no differentiable leaf"),
        ({"fun": lambda w, *args: w}, TypeError, "must return a scalar loss"),
        ({"fun": lambda w, *args: (w[0], w)}, TypeError, "must return a scalar loss"),
    ],
)
def test_a_wrong_argument_is_named(options, error, message):
    with pytest.raises(error, match=message):
        compare(**options)


def test_values_are_needed():
    for call in (
        lambda: compare(quadratic, jax.ShapeDtypeStruct((D,), "float32")),
        lambda: compare(quadratic, W, jax.ShapeDtypeStruct((6, D), "float32"), Y),
        lambda: jax.jit(lambda w: str(compare(quadratic, w)))(W),
    ):
        with pytest.raises(TypeError, match="params and args must be arrays with values"):
            call()


def test_an_error_of_the_loss_is_the_users():
    with pytest.raises(TypeError, match="dot_general requires"):
        compare(quadratic, normal(0, D + 1))


def test_a_progress_bar_if_tqdm_is_installed(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    options = {"estimators": {"normal": forward}, "max_keys": 6}
    compare(show_progress=True, **options)
    assert "compare" in capsys.readouterr().err
    compare(**options)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert compare(show_progress=True, **options)["normal"].seconds > 0
    assert capsys.readouterr().err == ""


def row(name, cosine, seconds, *, variance=1.0, bias=0.0, mebibytes=4.0):
    return EstimatorRow(
        name, exact(cosine), exact(1.0), exact(bias), exact(variance), 32,
        seconds=seconds, relative_time=seconds, total_bytes=mebibytes * 2**20,
    )  # fmt: skip


BACKPROP = row("backprop", 1.0, 2.0, variance=0.0)
SLOWER = row("checkpointed", 1.0, 3.0, variance=1e-9)
COARSE, FINE = row("coarse", 0.1, 2.0), row("fine", 0.31, 2.8)


@pytest.mark.parametrize(
    ("rows", "gradient_note", "expected"),
    [
        (
            [SLOWER, BACKPROP, COARSE, FINE],
            "",
            "Use backprop: it is exact and fits into memory (4 MiB in total), at R = 2; the best "
            "estimate (fine) has a cosine of 0.31 at 1.4 of its time.",
        ),
        (
            [BACKPROP, row("a little faster", 1.0, 1.9, variance=0.0)],
            "",
            "Use backprop: it is exact and fits into memory (4 MiB in total), at R = 2.",
        ),
        (
            [SLOWER],
            "",
            "Use checkpointed: it is exact and fits into memory (4 MiB in total), at R = 3.",
        ),
        (
            [COARSE, FINE],
            "",
            "Use fine of these: it has the largest squared cosine for its time, 0.31² at R = 2.8; "
            "but the loss has an exact gradient by fwdgrad.backprop_value_and_grad, with which to "
            "compare it.",
        ),
        (
            [row("a", math.nan, 2.0, variance=8.0), row("b", math.nan, 6.0, variance=4.0)],
            "no rule.",
            "Use a: it has the least variance for its time, 8 at R = 2; there is no exact gradient "
            "to compare it with.",
        ),
    ],
)
def test_the_recommendation(rows, gradient_note, expected):
    found = EstimatorComparison(tuple(rows), 1e-3, 50, gradient_note)
    assert found.recommendation == expected and str(found).endswith(f"\n\n{expected}")


def test_no_interval_of_few_groups_and_no_rounding_is_printed():
    rows = (
        EstimatorRow("few", Interval(0.5, 0.4, 0.6, 2)),
        EstimatorRow("rounding", exact(1.0), exact(1.0), exact(-1e-15), exact(1e-14), 32),
    )
    lines = str(EstimatorComparison(rows, 1e-3, 50)).splitlines()
    assert "0.5" in lines[1] and "[" not in lines[1]
    assert lines[2].split() == ["rounding", "1", "1", "0", "0", "32", "—", "—", "—", "—"]
