"""The keys of every config in `configs/`, each with the kind of its value.

A key that ends in ? may be left out; `EACH` stands for any name. Checked here, since OmegaConf's
structured configs know types and no ranges, and nothing of a constructor's arguments.
"""

from typing import Any

from experiments.common import kinds
from experiments.common.kinds import (
    BOOLEAN,
    COUNT,
    FRACTION,
    NAME,
    NOT_NEGATIVE,
    NUMBER,
    OPTIONS,
    OVERRIDES,
    PATH,
    POSITIVE,
    POSITIVE_INTEGER,
    SECONDS,
    SEED,
    STEPS,
    SUFFIX,
    TEXT,
    Kind,
    integer,
    list_of,
    mapping,
    one_of,
    optional,
)
from fwdgrad.problems import TEST_FUNCTIONS

EACH = "*"
CONSTRUCTOR = Kind("a mapping with _target_, a text", lambda x: isinstance(x, dict))

# Of the constructors of this library, and of optax: the arguments that may be set in a config.
ARGUMENTS: dict[str, Kind] = {
    **dict.fromkeys(("tangents", "space", "aggregation", "make_model"), CONSTRUCTOR),
    "num_tangents": POSITIVE_INTEGER,
    "chunk_size": optional(POSITIVE_INTEGER),
    "clip": optional(POSITIVE),
    "step": POSITIVE,
    **dict.fromkeys(
        ("shrink", "checkpoint", "enter_custom_vjp", "layerwise", "exact_last", "nesterov"),
        BOOLEAN,
    ),
    "rank": POSITIVE_INTEGER,
    "factors": one_of(["rademacher", "normal"]),
    "widths": list_of(POSITIVE_INTEGER),
    "channels": POSITIVE_INTEGER,
    "width": POSITIVE_INTEGER,
    "pooling": one_of(["select", "reduce"]),
    "num_frozen": COUNT,
    "momentum": FRACTION,
    "learning_rate": POSITIVE,  # or a schedule, which is constructed
    "initial": POSITIVE,
    "rate": NOT_NEGATIVE,
    "init_value": NOT_NEGATIVE,  # 0 where a schedule warms up
    "decay_steps": POSITIVE_INTEGER,
    "quantile": FRACTION,
    "multiple": POSITIVE,
}

_MODEL = {
    "name": NAME,
    "make": CONSTRUCTOR,
    "learning_rate": POSITIVE,
    "steps_per_call": {"default": POSITIVE_INTEGER, f"{EACH}?": POSITIVE_INTEGER},
    "compiler_options?": OPTIONS,
}
_DATASET = {"name": one_of(["mnist", "fashion_mnist", "kmnist"]), "folder": optional(PATH)}
_ROOT = {"root": PATH}
_OUTPUT = {
    **_ROOT,
    "progress": optional(BOOLEAN),
    "checkpoint_seconds": SECONDS,
    "accept_other_code": BOOLEAN,
}
_TRAIN = {
    "model": _MODEL,
    "dataset": _DATASET,
    "estimator": {
        "name": NAME,
        "label": NAME,
        "value_and_grad": CONSTRUCTOR,
        "guess_rate?": FRACTION,
    },
    "tangents?": {"name": NAME, "suffix": NAME, "distribution": CONSTRUCTOR},
    "space?": {"name": NAME, "prefix": NAME, "suffix": SUFFIX},
    "aggregation?": {"name": NAME, "suffix": SUFFIX},
    "guess?": {"name": NAME, "suffix": SUFFIX},
    "optimizer": CONSTRUCTOR,
    "seed": SEED,
    "num_steps": STEPS,
    "batch_size": POSITIVE_INTEGER,
    "eval_every": POSITIVE_INTEGER,
    "learning_rate": POSITIVE,
    "steps_per_call": POSITIVE_INTEGER,
    "compiler_options": OPTIONS,
    "output": _OUTPUT,
}
_LINES = {EACH: OVERRIDES}
_SEEDS, _RATES = list_of(SEED), list_of(POSITIVE)
_COST = {"rounds": POSITIVE_INTEGER, "steps_per_call": POSITIVE_INTEGER}
_RACE = {
    "history": optional(TEXT),
    "seconds": POSITIVE,
    "tuning": FRACTION,
    "num_rows": POSITIVE_INTEGER,
    "seeds": _SEEDS,
    "overrides": OVERRIDES,
    "model": OVERRIDES,
    "shown": optional(list_of(NAME)),
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
_EXPERIMENTS = {
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
        "costs": {EACH: _COST},
    },
    "depth_scaling": {
        **dict.fromkeys(("width", "batch_size", "depth", "rounds"), POSITIVE_INTEGER),
        **dict.fromkeys(("depths", "batch_sizes"), list_of(POSITIVE_INTEGER)),
        "max_seconds": POSITIVE,
        "products_per_call": POSITIVE_INTEGER,
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
        "history": optional(TEXT),
        "more_seeds": _SEEDS,
        "wanted": list_of(
            mapping({"line": NAME, "quantity": NAME, "at_least?": NUMBER, "at_most?": NUMBER})
        ),
        "shown": optional(list_of(NAME)),
        "lines": {
            EACH: {
                "group": TEXT,
                "derivatives": kinds.either(COUNT, TEXT),
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
KEYS: dict[str, dict[str, Any]] = {
    "train": _TRAIN,
    "reproduce": {
        "experiments": _EXPERIMENTS,
        "preset": NAME,
        "draw_only": BOOLEAN,
        "output": _OUTPUT,
    },
    "step_cost": {
        "dataset": _DATASET,
        "batch_size": POSITIVE_INTEGER,
        "num_batches": POSITIVE_INTEGER,
        "seed": SEED,
        "selection_rounds": POSITIVE_INTEGER,
        "models": {
            EACH: {
                "overrides": OVERRIDES,
                "forms": list_of(
                    mapping(
                        {
                            "steps_per_call": POSITIVE_INTEGER,
                            "compiler_options": OPTIONS,
                            "overrides?": OVERRIDES,
                        }
                    )
                ),
                "rounds": POSITIVE_INTEGER,
                "pytorch": BOOLEAN,
            }
        },
        "output": _ROOT,
    },
    "divergence": {
        "model": _MODEL,
        "dataset": _DATASET,
        "num_seeds": POSITIVE_INTEGER,
        "num_steps": STEPS,
        "batch_size": POSITIVE_INTEGER,
        "num_train": POSITIVE_INTEGER,
        "num_valid": POSITIVE_INTEGER,
        "rates": _RATES,
        "lines": {
            EACH: {"tangents": CONSTRUCTOR, "clip?": optional(POSITIVE), "clipping?": CONSTRUCTOR}
        },
        "output": _ROOT,
    },
    "overhead": {
        "model": _MODEL,
        "dataset": _DATASET,
        "batch_size": POSITIVE_INTEGER,
        "num_steps": STEPS,
        "rounds": POSITIVE_INTEGER,
        "output": _ROOT,
    },
    "walkthrough": {
        "tangent": list_of(NUMBER, 3),
        "cotangent": list_of(NUMBER, 2),
        "output": _ROOT,
    },
}
