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
    one_of,
    optional,
)
from fwdgrad.problems import TEST_FUNCTIONS

_LINES = {EACH: OVERRIDES}
_SEEDS, _RATES = list_of(SEED), list_of(POSITIVE)
_COST = dict.fromkeys(("processes", "rounds", "steps_per_call"), POSITIVE_INTEGER)
_FORMS = list_of(
    mapping(
        {"steps_per_call": POSITIVE_INTEGER, "compiler_options": OPTIONS, "overrides?": OVERRIDES}
    )
)
_RACE = {
    "history": optional(TEXT),
    "seconds": POSITIVE,
    "tuning": FRACTION,
    "num_rows": POSITIVE_INTEGER,
    "seeds": _SEEDS,
    "overrides": OVERRIDES,
    "model": OVERRIDES,
    "shown": optional(list_of(NAME)),
    "processes": POSITIVE_INTEGER,
    "rounds": POSITIVE_INTEGER,
    "lines": {
        EACH: {
            "like?": NAME,
            "family?": NAME,
            "derivatives?": COUNT,
            "overrides?": OVERRIDES,
            "rates?": _RATES,
            "seconds?": POSITIVE,
            "operations?": POSITIVE,
            "seeds?": _SEEDS,
            "wanted?": FRACTION,
            "behind?": NUMBER,
            "times?": POSITIVE,
            "ablates?": optional(NAME),
            "remark?": TEXT,
        }
    },
}
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
        **dict.fromkeys(("width", "batch_size", "depth", "rounds"), POSITIVE_INTEGER),
        **dict.fromkeys(("depths", "batch_sizes"), list_of(POSITIVE_INTEGER)),
        "max_seconds": POSITIVE,
        "products_per_call": POSITIVE_INTEGER,
        "resident": BOOLEAN,
    },
    "fair_comparison": {
        "panels": {
            EACH: {
                "title": TEXT,
                "overrides": OVERRIDES,
                "rates": _RATES,
                "tuning_steps": STEPS,
                "num_steps": STEPS,
                "full": {
                    "overrides": OVERRIDES,
                    "rates": _RATES,
                    "tuning_steps": STEPS,
                    "num_steps": STEPS,
                },
                "num_rows": POSITIVE_INTEGER,
            }
        },
        "shown": list_of(NAME),
        "lines": _LINES,
        "seeds": _SEEDS,
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
    "accuracy_race": _RACE,
    "cnn_race": _RACE,
}
