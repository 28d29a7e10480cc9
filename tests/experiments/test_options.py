"""Every option of every group has its effect with every estimator, or raises an error."""

import inspect
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fwdgrad
from experiments.common import from_config
from tests.sweeps import thorough_but

from .test_configs import GROUPS

# What an option of a group is in the made estimator; a group that is not named has its default.
# Options and classes have the same names, so that a new class needs no row here.
TANGENTS, AGGREGATIONS = (
    {name: getattr(fwdgrad, name.title().replace("_", ""))() for name in GROUPS[group]}
    for group in ("tangents", "aggregation")
)
SPACES = {
    "weights": fwdgrad.Weights(),
    "weights_exact_last": fwdgrad.Weights(exact_last=True),
    "activities": fwdgrad.Activities(),
}
OF_GROUP = {"tangents": TANGENTS, "space": SPACES, "aggregation": AGGREGATIONS}
GUESSES = ("isotropic", "learned", "feedback_learned", "feedback_fixed")
FEEDBACK = {"feedback_learned": "alone", "feedback_fixed": "fixed"}  # at activities
# The groups that an estimator reads.
READS = {
    "forward": {"tangents", "space", "aggregation", "guess"},
    "spsa": {"tangents"},
    "evolution": {"tangents"},
    "backprop": set(),
    "backprop_checkpointed": set(),
}


def test_the_tables_have_every_option():
    for group, options in OF_GROUP.items():
        assert sorted(options) == GROUPS[group]
    assert sorted(GUESSES) == GROUPS["guess"] and sorted(READS) == GROUPS["estimator"]


def value_of(made, argument):
    """Return the value of an argument of a partial, or its default."""
    return inspect.signature(made).parameters[argument].default


ALL = {**OF_GROUP, "guess": GUESSES}
SINGLE = [(group, option) for group, options in ALL.items() for option in options]


def product(groups):
    """From group to option, all combinations of the options of these groups."""
    groups = [group for group in ALL if group in groups]
    for chosen in itertools.product(*(ALL[group] for group in groups)):
        yield dict(zip(groups, chosen, strict=True))


DEFAULTS = {"tangents": "normal", "space": "weights", "aggregation": "mean", "guess": "isotropic"}


def combinations(estimator, most):
    """The products with at most so many options that are not the default."""
    for chosen in product(READS[estimator]):
        if chosen.get("guess") in FEEDBACK and chosen["space"] != "activities":
            continue
        if sum(option != DEFAULTS[group] for group, option in chosen.items()) <= most:
            yield chosen


@pytest.mark.parametrize(
    ("estimator", "most"),
    thorough_but([(name, 2) for name in READS], [*((n, 2) for n in READS), ("forward", 4)]),
)
def test_every_combination_has_its_options_and_a_label_of_its_own(compose, estimator, most):
    labels = set()
    for chosen in combinations(estimator, most):
        cfg = compose("train", f"estimator={estimator}", *(f"{g}={o}" for g, o in chosen.items()))
        made = from_config.estimator(cfg)
        for group in READS[estimator] - {"guess"}:
            expected = OF_GROUP[group][chosen[group]]
            if group == "space" and chosen.get("guess") in FEEDBACK:
                expected = replace(expected, feedback=FEEDBACK[chosen["guess"]])
            assert value_of(made, group) == expected
        has_guess = chosen.get("guess", "isotropic") != "isotropic"
        assert (cfg.estimator.get("guess_rate") is not None) == has_guess
        labels.add(from_config.label(cfg))
    assert len(labels) == len(list(combinations(estimator, most)))


@pytest.mark.parametrize("estimator", [name for name in READS if READS[name] != set(ALL)])
def test_an_option_that_an_estimator_does_not_read_is_an_error(compose, estimator):
    name = estimator.removesuffix("_checkpointed")
    for group, option in SINGLE:
        if group not in READS[estimator]:
            cfg = compose("train", f"estimator={estimator}", f"{group}={option}")
            message = (
                rf"^estimator={name} takes no choice of {group}\. Leave out {group}={option}, or "
                r"say estimator=forward\.$"
            )
            with pytest.raises(ValueError, match=message):
                from_config.estimator(cfg)
    cfg = compose("train", f"estimator={estimator}", "space=activities", "aggregation=mean")
    with pytest.raises(ValueError, match=r"space, agg.*Leave out space=activities, aggregation=me"):
        from_config.estimator(cfg)


def test_labels_of_all_groups_are_told_apart(compose):
    """Model, data set, estimator and optimizer, each by itself beside the defaults."""
    groups = ("model", "dataset", "estimator", "optimizer")
    found = {
        from_config.label(compose("train", f"{group}={option}"))
        for group in groups
        for option in GROUPS[group]
    }
    assert len(found) == sum(len(GROUPS[group]) - 1 for group in groups) + 1


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ([], "mlp-forward-normal"),
        (["estimator=backprop"], "mlp-backprop"),
        (["estimator=backprop_checkpointed"], "mlp-backprop-checkpointed"),
        (["estimator=spsa"], "mlp-spsa"),
        (["estimator=evolution"], "mlp-evolution"),
        (["tangents=low_rank"], "mlp-forward-low_rank"),
        (["space=activities"], "mlp-activities-normal"),
        (["space=weights_exact_last"], "mlp-forward-normal-exact-last"),
        (["guess=learned"], "mlp-forward-normal-guided"),
        (["space=activities", "guess=learned"], "mlp-activities-normal-guided"),
        (["aggregation=projection"], "mlp-forward-normal-projection"),
        (["estimator=spsa", "tangents=sphere"], "mlp-spsa-sphere"),
        (["optimizer=cosine", "dataset=kmnist"], "mlp-kmnist-forward-normal-cosine"),
        (["optimizer._target_=optax.lion"], "mlp-forward-normal-lion"),
        (["optimizer=sgd_clipped"], "mlp-forward-normal-clipped_sgd"),
        (["optimizer.learning_rate=0.1"], "mlp-forward-normal-constant"),
    ],
)
def test_labels(compose, overrides, label):
    assert from_config.label(compose("train", *overrides)) == label


def test_spsa_along_other_tangents(compose):
    """Sphere tangents have the norm √d; of a linear loss the estimate is (∇f·v) v."""
    cfg = compose("train", "estimator=spsa", "tangents=sphere")
    slope = jnp.array([1.0, 2.0, 3.0, 4.0])
    value_and_grad = from_config.estimator(cfg)(lambda w: slope @ w)
    for seed in range(3):
        grad = value_and_grad(jax.random.key(seed), jnp.zeros(4))[1]
        # g = (s·v) v with ‖v‖² = 4, so s·g = (s·v)² and ‖g‖² = 4 (s·v)²
        np.testing.assert_allclose(grad @ grad, 4 * (slope @ grad), rtol=1e-4)
        assert not np.allclose(np.abs(grad), np.abs(grad[0]))  # which signs' would be


def test_defaults_of_spsa_and_evolution_are_the_librarys(compose):
    for name in ("spsa", "evolution"):
        made = from_config.estimator(compose("train", f"estimator={name}"))
        library = getattr(fwdgrad, f"{name}_value_and_grad")
        assert "tangents" not in made.keywords
        assert value_of(made, "tangents") == value_of(library, "tangents")


@pytest.mark.parametrize("space", ["weights", "weights_exact_last"])
@pytest.mark.parametrize("guess", FEEDBACK)
def test_feedback_alone_needs_activities(compose, space, guess):
    cfg = compose("train", f"space={space}", f"guess={guess}")
    with pytest.raises(
        ValueError, match=rf"^guess={guess} needs activities\. Say space=activities"
    ):
        from_config.estimator(cfg)


def test_a_guess_rate_by_itself_is_not_ignored(compose):
    cfg = compose("train", "estimator=backprop", "+estimator.guess_rate=0.1")
    with pytest.raises(ValueError, match=r"takes no choice of guess\. Leave out estimator.guess_r"):
        from_config.estimator(cfg)
