"""Every key of every config: a wrong type or value is an error that names the key."""

import copy
import importlib
import math
import re
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.common import from_config, problems, protocol, settings
from experiments.common.keys import KEYS
from experiments.common.kinds import EACH

from .test_launchers import COMMANDS

NAN, INF = math.nan, math.inf
NOT_INTEGERS = [1.5, True, None, "many", [1], {"a": 1}, NAN, INF]
NOT_NUMBERS = [True, None, "many", [1], {"a": 1}, NAN, INF]
NOT_LISTS = [16, None, "16", {"a": 1}, True]
NOT_TEXTS = [16, 1.5, True, None, ["a"], {"a": 1}, "", " "]
# Kinds of wrong values, each with what is right: keys must be of one of them.
POSITIVE_INTEGER = ([0, -1, *NOT_INTEGERS], [1, 64])
COUNT = ([-1, *NOT_INTEGERS], [0, 64])
SEED = ([-1, 2**32, 2**70, *NOT_INTEGERS], [0, 2**32 - 1])
STEPS = ([0, 2**31, *NOT_INTEGERS], [1, 2**31 - 1])
POSITIVE = ([0, -1.0, *NOT_NUMBERS], [1, 0.5, 1e38])
NUMBER = (NOT_NUMBERS, [1, -0.5, 0])
FRACTION = ([-0.1, 1.1, *NOT_NUMBERS], [0, 0.5, 1])
BOOLEAN = (["yes", 1, 0.0, None, [True]], [True, False])
BOOLEAN_OR_NULL = (["yes", 1, 0.0, [True]], [True, False, None])
TEXT = (NOT_TEXTS, ["a – b", "a/b"])
TEXT_OR_NULL = ([x for x in NOT_TEXTS if x is not None], ["a – b", None])
NAME = (["a/b", "a\\b", *NOT_TEXTS], ["a-b_1.5"])
SUFFIX = (["a/b", *(x for x in NOT_TEXTS if x != "")], ["", "-guided"])
PATH = (["a\0b", *NOT_TEXTS], ["results/a=b, (c)", "~/x", "./2026"])
PATH_OR_NULL = ([x for x in PATH[0] if x is not None], ["data", None])
OVERRIDES = ([*NOT_LISTS, [1], [None], [""]], [[], ["model=mlp", "seed=1"]])
NAMES = ([*NOT_LISTS, [1], ["a/b"]], [[], ["mlp"]])
NAMES_OR_NULL = ([x for x in NAMES[0] if x is not None], [None, ["mlp"]])
SEEDS = ([*NOT_LISTS, ["a"], [-1], [1.5], [True]], [[], [0, 3]])
SEEDS_OR_NULL = ([x for x in SEEDS[0] if x is not None], [None, [0]])
RATES = ([*NOT_LISTS, ["a"], [-1], [0], [NAN], [True]], [[1e-4, 1]])
SIZES = ([*NOT_LISTS, ["a"], [-1], [0], [1.5]], [[1, 64]])
OPTIONS = ([1, "a", ["a"], True], [None, {}, {"xla_a": ""}])
CONSTRUCTOR = ([*NOT_LISTS[:3], {"a": 1}, {"_target_": 1}, {"_target_": "a.B", "x": NAN}],
               [{"_target_": "a.B", "x": [1, {"y": "z"}]}])  # fmt: skip
MAPPING = ([16, None, "a", [1]], [])

# The last name of a key -> its kind; of some the one or two names before it as well.
TABLE = {
    **dict.fromkeys(
        ("batch_size", "eval_every", "steps_per_call", "default", "num_rows", "width", "depth",
         "products_per_call", "num_seeds", "repetitions", "guess_steps", "num_batches",
         "selection_rounds", "processes", "repeats", "rounds", "num_train", "num_valid",
         "num_tangents", "rank", "channels", "loss_every", "gradient_every", "curvature_every",
         "curvature_minibatches", "lanczos", "probes"),
        POSITIVE_INTEGER,
    ),
    "num_steps": STEPS,
    "step_sizes.num_steps": POSITIVE_INTEGER,
    "jacobian_modes.rounds": ([5, *NOT_INTEGERS], [6]),
    "estimator_error.width": ([1, *NOT_INTEGERS], [2]),
    "draws": ([1, *NOT_INTEGERS], [2]),
    "max_keys": ([5, *NOT_INTEGERS], [6]),
    "smallest": ([0, -301, *NOT_INTEGERS], [-16]),
    "model.steps_per_call": MAPPING,
    "seed": SEED,
    **dict.fromkeys(
        ("learning_rate", "max_seconds", "fixed_cost", "times", "initial", "first_rate",
         "half_width", "margin_points", "first_rates.*", "training.operations",
         "published_error"), POSITIVE
    ),
    "optimizer.learning_rate": (POSITIVE[0], [1, {"_target_": "a.b"}]),
    **dict.fromkeys(("confidence", "guess_rate", "target_accuracy"), FRACTION),
    "num_rates": ([2, *NOT_INTEGERS], [3]),
    "factor": ([1, 0.5, *NOT_NUMBERS], [2, 3.2]),
    "comparisons": ([*NOT_LISTS, ["a"], [["a"]], [["a", "b", "c"]]], [[], [["a", "b"]]]),
    **dict.fromkeys(
        ("tuning", "timing", "compared", "protocol.comparisons", "first_rates"), MAPPING
    ),
    "rate": ([-1.0, *NOT_NUMBERS], [0, 1e-4]),
    "checkpoint_seconds": ([-1, NAN, "abc", None, True, [30]], [0, 0.1, INF]),
    **dict.fromkeys(("draw_only", "share_processes", "together", "accept_other_code", "resident",
                     "learnt", "uncounted", "read_test_set"), BOOLEAN),
    "progress": BOOLEAN_OR_NULL,
    **dict.fromkeys(("title", "group"), TEXT),
    "history": TEXT_OR_NULL,
    **dict.fromkeys(("name", "label", "prefix", "preset", "reference", "family"), NAME),
    "tangents.suffix": NAME,
    "suffix": SUFFIX,
    "dataset.name": (["mnits", *NOT_TEXTS], ["mnist", "kmnist"]),
    "function": (["beele", *NOT_TEXTS], ["beale"]),
    "derivatives": ([-1, 1.5, True, None, []], [0, 8]),
    **dict.fromkeys(("root", "page"), PATH),
    "folder": PATH_OR_NULL,
    **dict.fromkeys(("overrides", "own", "training"), OVERRIDES),
    **{f"{name}.model": OVERRIDES for name in protocol.EXPERIMENTS},
    **dict.fromkeys(
        [f"{name}.lines.*" for name in
         ("trajectories", "step_cost", "learning_curves", "small_rates")], OVERRIDES
    ),
    "figures.*": NAMES,
    "runs_of": ([*NOT_LISTS, ["cuda"], [1]], [[], ["gpu"]]),
    "platform": (["tpu", 16, True, ""], [None, "cpu", "gpu"]),
    "expected_seconds.*": POSITIVE,
    **dict.fromkeys(("budget_seconds", "operations"),
                    ([x for x in POSITIVE[0] if x is not None], [None, 600])),
    "shown": NAMES_OR_NULL,
    **dict.fromkeys(("step_cost.shown", "learning_curves.shown", "fair_comparison.shown"), NAMES),
    "without": NAMES,
    "line": ([x for x in NAME[0] if x is not None], ["backprop", None]),
    "paper": ([x for x in NAME[0] if x is not None], ["mlp", None]),
    "seeds": SEEDS,
    "panels.*.seeds": SEEDS_OR_NULL,
    **dict.fromkeys(("stages", "steps"), ([*NOT_LISTS, [-1], ["a"]], [[0, 200]])),
    "rates": RATES,
    **dict.fromkeys(("small_rates.stages", "small_rates.rates"), MAPPING),
    "small_rates.rates.*": RATES,
    "rate_seeds": SEEDS,
    "minibatches": ([1, *NOT_INTEGERS], [2]),
    **dict.fromkeys(("depths", "batch_sizes", "sizes", "numbers", "widths"), SIZES),
    "lengths": ([*SIZES[0], [2**31]], SIZES[1]),
    "start": ([*NOT_LISTS, ["a"], [NAN]], [[0, 0.5]]),
    "tangent": ([*NOT_LISTS, [1.0, 0.0], [NAN, 0, 0], ["a", 0, 0]], [[1, 0.5, 0]]),
    "cotangent": ([*NOT_LISTS, [1.0], [INF, 0], ["a", 0]], [[1, 0.5]]),
    "forms": MAPPING,
    "forms.*": ([*NOT_LISTS, [1], [{"steps_per_call": 1}],
               [{"steps_per_call": 0, "compiler_options": {}}]],
              [[{"steps_per_call": 1, "compiler_options": {}}]]),
    "compiler_options": OPTIONS,
    **dict.fromkeys(("make", "value_and_grad", "distribution", "optimizer", "make_model",
                     "value_and_grad.tangents", "value_and_grad.space",
                     "value_and_grad.aggregation", "divergence.lines.*.tangents",
                     "clipping"), CONSTRUCTOR),
    # Arguments of constructors.
    "chunk_size": ([0, 1.5, True, "a", NAN], [None, 8]),
    "clip": ([0, -1, True, "a", NAN, INF], [None, 1, 0.5]),
    "step": POSITIVE,
    "checkpoint": BOOLEAN,
    "layerwise": BOOLEAN,
    "exact_last": BOOLEAN,
    "at_kernels": BOOLEAN,
    "chained": BOOLEAN,
    **dict.fromkeys(("scaling_laws.errors", "scaling_laws.training", "errors.axes"), MAPPING),
    "scaling_laws.parts": ([*NOT_LISTS, ["error"]], [[], ["errors", "training"]]),
    "lines.*.axes": ([*NOT_LISTS, ["height"]], [[], ["width", "rank"]]),
    **dict.fromkeys([f"axes.{x}" for x in ("width", "depth", "num_tangents", "rank")], SIZES),
    "standard_error": POSITIVE,
    "momentum": FRACTION,
    "init_value": ([-1.0, *NOT_NUMBERS], [0, 1e-4]),
    "decay_steps": POSITIVE_INTEGER,
    "peak_value": ([-1.0, *NOT_NUMBERS], [0, 1e-4]),
    "transition_steps": COUNT,
    "pct_start": FRACTION,
    "div_factor": POSITIVE,
    "quantile": FRACTION,
    "multiple": POSITIVE,
    "factors": (["gauss", 1, None], ["normal"]),
    "feedback": (["random", 1, None], ["alone", "fixed"]),
    "pooling": (["max", 1, None], ["reduce"]),
    **dict.fromkeys(("num_frozen", "max_shift"), COUNT),
    **dict.fromkeys(("length", "heads", "num_inputs", "teacher_width", "num_examples"),
                    POSITIVE_INTEGER),
    "path": PATH_OR_NULL,
    "_partial_": ([NAN], [True]),
    "_target_": ([1, None, ""], []),
}  # fmt: skip
OF_TRAIN = [
    ["model=mlp"], ["model=cnn"], ["model=mlp_frozen"], ["estimator=spsa"], ["space=activities"],
    ["estimator=backprop_checkpointed"], ["guess=learned", "aggregation=projection"],
    ["tangents=low_rank"], ["optimizer=cosine"], ["optimizer=sgd_clipped"],
    ["space=weights_exact_last"], ["problem=digit_sum_shifted"],
    ["problem=sequence"], ["problem=regression"], ["problem=language_model"],
    ["estimator.value_and_grad.clip=1"], ["space=activities", "guess=feedback_fixed"],
]  # fmt: skip


def expected(path):
    """The entry of the table for a key: that with the most names."""
    for length in (3, 2, 1):
        for names in (path[-length:], ("*", *path[-length:][1:]), (*path[-length:][:-1], "*"),
                      (*path[-length:][:-2], "*", *path[-length:][-1:])):  # fmt: skip
            if len(names) == length and (found := TABLE.get(".".join(names))) is not None:
                return found
    return None


def keys_of(value, path=()):
    """All keys, those of mappings within mappings included."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from keys_of(inner, (*path, key))


def of_any_name(path, keys):
    """The key with * for names that are free; whole from a constructor on."""
    general = []
    for i, key in enumerate(path):
        known = {name.removesuffix("?"): inner for name, inner in keys.items()}
        general.append(key if key in known else EACH)
        keys = known[general[-1]]
        if not isinstance(keys, dict):
            return (*general, *path[i + 1 :])
    return tuple(general)


def changed(config, path, value):
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return config


def check_all_keys(name, config, seen):
    """Every wrong value of every key is an error that names it, and every right one is none."""
    settings._check(config, KEYS[name], "")
    for path in keys_of(config):
        if "compiler_options" in path[:-1]:
            continue  # XLA knows which it has
        value = config
        for key in path:
            value = value[key]
        table = expected(path)
        if table is None:  # a mapping with keys of its own
            assert isinstance(value, dict), path
            table = MAPPING
        if (general := of_any_name(path, KEYS[name])) in seen:
            continue
        seen.add(general)
        wrong, right = table
        for bad in wrong:
            with pytest.raises(ValueError, match=rf"\b{re.escape('.'.join(path))}\b") as error:
                settings._check(changed(config, path, bad), KEYS[name], "")
            assert "must be" in str(error.value) and "found" in str(error.value)
        for good in right:
            settings._check(changed(config, path, good), KEYS[name], "")


def test_every_key_of_train(compose):
    seen = set()
    for overrides in OF_TRAIN:
        config = OmegaConf.to_container(compose("train", *overrides), resolve=True)
        check_all_keys("train", config, seen)
    assert {path[-1] for path in seen} >= {
        "seed",
        "root",
        "widths",
        "clip",
        "momentum",
        "guess_rate",
    }


@pytest.mark.parametrize("name", sorted(set(KEYS) - {"train"}))
def test_every_key_of_the_other_commands(compose, name):
    config = OmegaConf.to_container(compose(name), resolve=True)
    check_all_keys(name, config, set())


def test_keys_that_are_missing(compose):
    config = OmegaConf.to_container(compose("train"), resolve=True)
    for path in (("seed",), ("output", "root"), ("model", "make")):
        lacking = copy.deepcopy(config)
        inner = lacking
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        with pytest.raises(ValueError, match=rf"^the key {'.'.join(path)} is missing\.$"):
            settings._check(lacking, KEYS["train"], "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_checks_its_config_before_anything_else(compose, tmp_path, name):
    command = importlib.import_module(name).command
    cfg = compose(command.config_name, "output.root=2026")
    with pytest.raises(ValueError, match=r"^output\.root must be a path.*write output\.root=\./2"):
        command(cfg)
    assert not Path("2026").exists()


@pytest.mark.parametrize(
    "override",
    ["learning_rate=nan", "learning_rate=inf", "learning_rate=-1", "seed=true", f"seed={2**64}",
     "estimator.value_and_grad.clip=nan", "output.root=null", "output.checkpoint_seconds=abc",
     "model.make.widths=16", "optimizer.learning_rate.rate=nan", "+optimizer.momentum=abc",
     "+optimizer.nesterov=1", "dataset.name=mnits", "steps_per_call=0", "compiler_options=3"],
)  # fmt: skip
def test_wrong_values_of_a_run(compose, tmp_path, monkeypatch, override):
    """Before a data set is read or a folder is made."""
    monkeypatch.setattr(problems, "load_dataset", lambda *_: pytest.fail("data were read"))
    cfg = compose("train", f"output.root={tmp_path}/runs", override)
    key = override.partition("=")[0].removeprefix("+")
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} must be "):
        from_config.run(cfg)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer._target_=optax.lion", "+optimizer.weight_decay=abc"], "^optimizer: "),
        (
            ["+optimizer.decay=0.1"],
            r"optax[\s\S]*unexpected keyword argument .decay.[\s\S]*key: optimizer",
        ),
        (["+estimator.value_and_grad.taps=2"], "^estimator.value_and_grad: .*taps"),
    ],
)
def test_arguments_that_only_their_constructor_knows(compose, overrides, message):
    with pytest.raises((ValueError, HydraException), match=message):
        from_config.run(compose("train", *overrides))
