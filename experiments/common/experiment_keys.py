"""The keys of `configs/experiment/`, each with the kind of its value."""

from typing import Any

from experiments.common.kinds import (
    BOOLEAN,
    COUNT,
    EACH,
    FRACTION,
    NAME,
    NUMBER,
    OPTIONS,
    OVERRIDES,
    POSITIVE,
    POSITIVE_INTEGER,
    SEED,
    STEPS,
    TEXT,
    either,
    integer,
    list_of,
    mapping,
    number,
    one_of,
    optional,
)
from fwdgrad.problems import TEST_FUNCTIONS

_LINES = {EACH: OVERRIDES}
_SEEDS = list_of(SEED)
_COST = {
    **dict.fromkeys(("processes", "rounds", "steps_per_call"), POSITIVE_INTEGER),
    "max_seconds": POSITIVE,
}
_TUNING = {"seeds": _SEEDS, "num_rates": integer(3), "factor": number("above 1", lambda x: x > 1)}
_COMPARED = {"confidence": FRACTION, "margin_points": POSITIVE}
_PAIRS = list_of(list_of(NAME, 2))
_TIMING = {"processes": POSITIVE_INTEGER, "rounds": POSITIVE_INTEGER}
_AXES = ("width", "depth", "num_tangents", "rank")  # of scaling laws
_FORMS = list_of(
    mapping(
        {"steps_per_call": POSITIVE_INTEGER, "compiler_options": OPTIONS, "overrides?": OVERRIDES}
    )
)
_RACE = {
    "operations": optional(POSITIVE),
    "num_steps?": STEPS,
    "target_accuracy?": FRACTION,
    "num_tangents?": POSITIVE_INTEGER,
    "num_rows": POSITIVE_INTEGER,
    "overrides": OVERRIDES,
    "model": OVERRIDES,
    "shown": optional(list_of(NAME)),
    "lines": {
        EACH: {
            "family": NAME,
            "derivatives": COUNT,
            "overrides": OVERRIDES,
            "first_rate": POSITIVE,
            "times?": POSITIVE,
        }
    },
    "comparisons": _PAIRS,
    "seeds": _SEEDS,
    "tuning": _TUNING,
    "compared": _COMPARED,
    "timing": _TIMING,
}
PROTOCOL = {"seeds": _SEEDS, "tuning": _TUNING, "comparisons": _COMPARED, "timing": _TIMING}
EXPERIMENTS: dict[str, Any] = {
    "trajectories": {
        "figures": {EACH: list_of(NAME)},
        "num_seeds": POSITIVE_INTEGER,
        "functions": {
            EACH: {
                "title": TEXT,
                "function": one_of(TEST_FUNCTIONS),
                "start": list_of(NUMBER),
                "learning_rate": POSITIVE,
                "num_steps": STEPS,
                "full?": {
                    "start": list_of(NUMBER),
                    "learning_rate": POSITIVE,
                    "num_steps": STEPS,
                },
            }
        },
        "lines": _LINES,
    },
    "learning_curves": {
        "panels": {
            EACH: {
                "title": TEXT,
                "overrides": OVERRIDES,
                "num_steps": STEPS,
                "full": {"num_steps": STEPS, "overrides": OVERRIDES},
                "eval_every": POSITIVE_INTEGER,
                "seeds": optional(_SEEDS),
            }
        },
        "shown": list_of(NAME),
        "lines": _LINES,
        "seeds": _SEEDS,
    },
    "step_cost": {
        "panels": {
            EACH: {
                "title": TEXT,
                "overrides": OVERRIDES,
                "full": {"overrides": OVERRIDES},
                "paper": optional(NAME),
                "without": list_of(NAME),
                "rounds": POSITIVE_INTEGER,
                "forms": {"other": _FORMS, f"{EACH}?": _FORMS},
            }
        },
        "shown": list_of(NAME),
        "lines": _LINES,
        **dict.fromkeys(("processes", "selection_rounds"), POSITIVE_INTEGER),
        "max_seconds": POSITIVE,
    },
    "depth_scaling": {
        **dict.fromkeys(("width", "batch_size", "depth"), POSITIVE_INTEGER),
        **dict.fromkeys(("processes", "rounds"), POSITIVE_INTEGER),
        **dict.fromkeys(("depths", "batch_sizes"), list_of(POSITIVE_INTEGER)),
        **dict.fromkeys(("max_seconds", "fixed_cost"), POSITIVE),
        "products_per_call": POSITIVE_INTEGER,
        "resident": BOOLEAN,
    },
    "fair_comparison": {
        "panels": {
            EACH: {
                "title": TEXT,
                "overrides": OVERRIDES,
                "num_steps": STEPS,
                "full": {"overrides": OVERRIDES, "num_steps": STEPS},
                "num_rows": POSITIVE_INTEGER,
            }
        },
        "shown": list_of(NAME),
        "lines": {EACH: {"overrides": OVERRIDES, "first_rates": {EACH: POSITIVE}}},
        "comparisons": _PAIRS,
        "seeds": _SEEDS,
        "tuning": _TUNING,
        "confidence": FRACTION,
        "timing": _TIMING,
    },
    "small_rates": {
        "title": TEXT,
        "overrides": OVERRIDES,
        "num_steps": STEPS,
        "learning_rate": POSITIVE,
        "seeds": _SEEDS,
        "stages": {
            "minibatches": integer(2),  # two halves
            **dict.fromkeys(
                ("loss_every", "gradient_every", "curvature_every", "curvature_minibatches"),
                POSITIVE_INTEGER,
            ),
            **dict.fromkeys(("lanczos", "probes"), POSITIVE_INTEGER),
        },
        "shown": optional(list_of(NAME)),
        "lines": _LINES,
        "rate_seeds": _SEEDS,
        "rates": {EACH: list_of(POSITIVE)},
    },
    "differentiation": {
        "step_sizes": {
            "width": POSITIVE_INTEGER,
            "num_steps": POSITIVE_INTEGER,
            "smallest": integer(-300, -1),
        },
        "expression_swell": {"depth": POSITIVE_INTEGER},
        "jacobian_modes": {
            "sizes": list_of(POSITIVE_INTEGER),
            "width": POSITIVE_INTEGER,
            "rounds": integer(6),  # an interval of 95 % needs as many
        },
        "estimator_error": {
            "width": integer(2),
            "numbers": list_of(POSITIVE_INTEGER),
            "repetitions": POSITIVE_INTEGER,
        },
    },
    "estimator_quality": {
        "overrides": OVERRIDES,
        "training": OVERRIDES,
        "stages": list_of(COUNT),
        "seeds": _SEEDS,
        "draws": integer(2),
        "guess_steps": POSITIVE_INTEGER,
        "costs": _COST,
        "reference": NAME,
        "shown": optional(list_of(NAME)),
        "lines": {
            EACH: {
                "group": TEXT,
                "derivatives": either(COUNT, TEXT),
                "overrides": OVERRIDES,
                "draws?": integer(2),
                "learnt?": BOOLEAN,
                "uncounted?": BOOLEAN,
            }
        },
    },
    "scaling_laws": {
        "parts": list_of(one_of(["errors", "training"])),
        "overrides": OVERRIDES,
        **dict.fromkeys(("width", "depth"), POSITIVE_INTEGER),
        "shown": optional(list_of(NAME)),
        "errors": {
            "overrides": OVERRIDES,
            "seeds": _SEEDS,
            "standard_error": POSITIVE,
            "guess_steps": POSITIVE_INTEGER,
            "axes": dict.fromkeys(_AXES, list_of(POSITIVE_INTEGER)),
        },
        "training": {
            "overrides": OVERRIDES,
            "widths": list_of(POSITIVE_INTEGER),
            "operations": POSITIVE,
            "num_rows": POSITIVE_INTEGER,
            "seeds": _SEEDS,
            "tuning": _TUNING,
            "timing": _TIMING,
        },
        "lines": {
            EACH: {
                "axes": list_of(one_of(_AXES)),
                "most?": {f"{axis}?": POSITIVE_INTEGER for axis in _AXES},
                "overrides": OVERRIDES,
                "first_rate?": POSITIVE,
            }
        },
    },
    "perturbed_weights": {
        "overrides": OVERRIDES,
        "published_error": POSITIVE,
        "shown": optional(list_of(NAME)),
        "law": {
            "stages": list_of(COUNT),
            "minibatches": integer(2),  # two halves
            **dict.fromkeys(("curvature_minibatches", "probes"), POSITIVE_INTEGER),
        },
        "seeds": _SEEDS,
        "tuning": _TUNING,
        "lines": {
            EACH: {
                "overrides": OVERRIDES,
                "num_tangents?": POSITIVE_INTEGER,
                "lengths": list_of(STEPS),
                "first_rate": POSITIVE,
            }
        },
    },
    **dict.fromkeys(
        (
            "accuracy_race",
            "cnn_race",
            "sum_race",
            "sum_race_long",
            "sum_race_shifted",
            "sum_race_deep",
            "sum_race_cnn",
            "cnn_race_long",
            "optimizer_race",
        ),
        _RACE,
    ),
}
