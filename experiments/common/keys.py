"""The keys of every config in `configs/`, each with the kind of its value.

A key that ends in ? may be left out; `EACH` stands for any name. Checked here, since OmegaConf's
structured configs know types and no ranges, and nothing of a constructor's arguments.
"""

from typing import Any

from experiments.common.experiment_keys import EXPERIMENTS, PROTOCOL
from experiments.common.kinds import (
    BOOLEAN,
    COUNT,
    EACH,
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
    Kind,
    integer,
    list_of,
    one_of,
    optional,
)
from fwdgrad.problems import DATASET_NAMES

CONSTRUCTOR = Kind("a mapping with _target_, a text", lambda x: isinstance(x, dict))

# Of the constructors of this library, and of optax: the arguments that may be set in a config.
ARGUMENTS: dict[str, Kind] = {
    **dict.fromkeys(("tangents", "space", "aggregation", "make_model"), CONSTRUCTOR),
    "num_tangents": POSITIVE_INTEGER,
    "chunk_size": optional(POSITIVE_INTEGER),
    "clip": optional(POSITIVE),
    "step": POSITIVE,
    **dict.fromkeys(
        (
            *("shrink", "checkpoint", "enter_custom_vjp", "nesterov"),
            *("layerwise", "exact_last", "at_kernels", "chained"),
        ),
        BOOLEAN,
    ),
    "rank": POSITIVE_INTEGER,
    "factors": one_of(["rademacher", "normal"]),
    "widths": list_of(POSITIVE_INTEGER),
    "channels": POSITIVE_INTEGER,
    **dict.fromkeys(
        ("width", "length", "depth", "heads", "num_inputs", "teacher_width", "num_examples"),
        POSITIVE_INTEGER,
    ),
    "seed": SEED,
    "path": optional(PATH),
    "pooling": one_of(["select", "reduce"]),
    **dict.fromkeys(("num_frozen", "max_shift"), COUNT),
    "momentum": FRACTION,
    **dict.fromkeys(("b1", "b2", "floor"), FRACTION),
    "learning_rate": POSITIVE,  # or a schedule, which is constructed
    "initial": POSITIVE,
    "rate": NOT_NEGATIVE,
    "init_value": NOT_NEGATIVE,  # 0 where a schedule warms up
    "decay_steps": POSITIVE_INTEGER,
    "peak_value": NOT_NEGATIVE,
    "transition_steps": COUNT,
    "pct_start": FRACTION,
    "div_factor": POSITIVE,
    "quantile": FRACTION,
    "multiple": POSITIVE,
}

_MODEL = {
    "name": NAME,
    "make": CONSTRUCTOR,
    "widths?": list_of(POSITIVE_INTEGER),
    "channels?": POSITIVE_INTEGER,
    "width?": POSITIVE_INTEGER,
    "learning_rate": POSITIVE,
    "steps_per_call": {"default": POSITIVE_INTEGER, f"{EACH}?": POSITIVE_INTEGER},
    "compiler_options?": OPTIONS,
}
_DATASET = {"name": one_of(DATASET_NAMES), "folder": optional(PATH)}
# Of a data set of the user's own, which has a source.
OWN_DATASET = {"name": NAME, "folder": optional(PATH), "source": CONSTRUCTOR}
_ROOT = {"root": PATH}
_OUTPUT = {
    **_ROOT,
    "progress": optional(BOOLEAN),
    "checkpoint_seconds": SECONDS,
    "accept_other_code": BOOLEAN,
    "runs_of": list_of(one_of(("cpu", "gpu", "tpu"))),
    "together?": BOOLEAN,
}
_TRAIN = {
    "problem": CONSTRUCTOR,
    "model?": _MODEL,
    "dataset?": _DATASET,
    "estimator": {
        "name": NAME,
        "label": NAME,
        "value_and_grad": CONSTRUCTOR,
        "guess_rate?": FRACTION,
        "feedback?": one_of(["alone", "fixed"]),
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
    "read_test_set": BOOLEAN,
    "output": _OUTPUT,
}
_OF_RUNS = ("num_steps", "eval_every", "read_test_set", "output")
KEYS: dict[str, dict[str, Any]] = {
    "train": _TRAIN,
    "compare": {
        **{key: x for key, x in _TRAIN.items() if key not in _OF_RUNS},
        "half_width": POSITIVE,
        "max_keys": integer(6),
        "max_seconds": POSITIVE,
        "output": {**_ROOT, "progress": optional(BOOLEAN)},
    },
    "reproduce": {
        "experiments": EXPERIMENTS,
        "protocol": PROTOCOL,
        "preset": NAME,
        "shown": optional(list_of(NAME)),
        "own": OVERRIDES,
        "platform": optional(one_of(["cpu", "gpu"])),
        "expected_seconds": {EACH: POSITIVE},
        "budget_seconds": optional(POSITIVE),
        "share_processes": BOOLEAN,
        "line": optional(NAME),
        "draw_only": BOOLEAN,
        "output": _OUTPUT,
    },
    "divergence": {
        "model": _MODEL,
        "dataset": _DATASET,
        "num_seeds": POSITIVE_INTEGER,
        "num_steps": STEPS,
        "batch_size": POSITIVE_INTEGER,
        "num_train": POSITIVE_INTEGER,
        "num_valid": POSITIVE_INTEGER,
        "rates": list_of(POSITIVE),
        "lines": {
            EACH: {"tangents": CONSTRUCTOR, "clip?": optional(POSITIVE), "clipping?": CONSTRUCTOR}
        },
        "output": _ROOT,
    },
    "noise_allocation": {
        "problem": CONSTRUCTOR,
        "model": _MODEL,
        "dataset": _DATASET,
        "seeds": list_of(SEED),
        "learning_rate": POSITIVE,
        "num_steps": STEPS,
        "steps": list_of(COUNT),
        **dict.fromkeys(("batch_size", "num_examples"), POSITIVE_INTEGER),
        "output": _ROOT,
    },
    "null_test": {
        "problem": CONSTRUCTOR,
        "model": _MODEL,
        "dataset": _DATASET,
        **dict.fromkeys(
            ("batch_size", "steps_per_call", "repeats", "processes", "rounds"), POSITIVE_INTEGER
        ),
        "output": _ROOT,
    },
    "dashboard": {"page": PATH, "output": _ROOT},
    "walkthrough": {
        "tangent": list_of(NUMBER, 3),
        "cotangent": list_of(NUMBER, 2),
        "output": _ROOT,
    },
}
