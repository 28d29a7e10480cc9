"""Identity of a run: settings of JAX, code and versions; and wrong arguments."""

import copy
import importlib
import json

import jax
import numpy as np
import optax
import pytest

from fwdgrad.measurement import cache, measured_once
from fwdgrad.records import OtherCodeWarning, config_identity, jax_settings, provenance, read_run
from fwdgrad.records.sources import source_sum, syntax
from fwdgrad.training import Settings, loop
from tests.training.regression import CONFIG, FORWARD, SETTINGS, assert_same_run, rewrite, run

# Settings of JAX


OTHERS = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 7,
    "jax_high_dynamic_range_gumbel": True,
    "jax_enable_x64": True,
    "jax_default_matmul_precision": "highest",
    "jax_numpy_dtype_promotion": "strict",
}


@pytest.fixture
def set_jax():
    before = {name: getattr(jax.config, name) for name in OTHERS}
    yield jax.config.update
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_each_setting_that_decides_numbers_is_part_of_the_identity(
    problem, finished, unfinished, tmp_path, set_jax, name, value
):
    config, calls = {"n": 1}, []
    first = measured_once(tmp_path, "m", config, lambda: calls.append(1))
    assert cache.with_changed_settings(config) == config  # under JAX's own
    set_jax(name, value)
    changed = cache.with_changed_settings(config)
    assert changed == {"n": 1, "jax_settings": {name: value}}
    assert config_identity(changed) != config_identity(config)
    assert provenance()["jax"][name] == value
    again = measured_once(tmp_path, "m", config, lambda: calls.append(1))
    assert len(calls) == 2 and again["config"] == changed and first["config"] == config
    for folder in (finished, unfinished):
        with pytest.raises(
            ValueError, match=f"holds another run, with {name} .* is {name} {value}"
        ):
            run(problem, folder)


def test_another_platform_is_another_run(problem, finished, copied):
    folder = copied(finished)
    assert jax_settings()["platform"] == "cpu"
    rewrite(folder / "run.json", lambda info: info["jax"].update(platform="gpu"))
    with pytest.raises(ValueError, match="with platform gpu; wanted is platform cpu"):
        run(problem, folder)
    # Records from before settings were kept have the platform as hardware.
    rewrite(folder / "run.json", lambda info: info.pop("jax"))
    assert run(problem, folder).info["status"] == "finished"
    rewrite(folder / "run.json", lambda info: info["hardware"].update(device="gpu"))
    with pytest.raises(ValueError, match="with platform gpu; wanted is platform cpu"):
        run(problem, folder)


# Other code


@pytest.fixture
def other_code(monkeypatch):
    """From here on the code is another."""
    module = importlib.import_module("fwdgrad.records.provenance")  # the package has the function
    other = {"commit": "f" * 40, "dirty": False, "sum": "0123456789abcdef"}
    monkeypatch.setattr(module, "_code", lambda sources: copy.copy(other))
    return other


SOURCE = '"""Doc."""\nX = 1  # one\n\ndef f(a, *, b=None):\n    """Doc."""\n    return a + 1\n'
SAME = {
    "comments": SOURCE.replace("# one", "# One of them"),
    "docstrings": SOURCE.replace("Doc.", "Another text."),
    "no docstring": SOURCE.replace('    """Doc."""\n', ""),
    "layout": SOURCE.replace("a + 1", "(\n        a + 1\n    )"),
    "lines": SOURCE.replace("\n\n", "\n\n\n\n"),
}
OTHER = {
    "a number": SOURCE.replace("+ 1", "+ 2"),
    "its type": SOURCE.replace("+ 1", "+ 1.0"),
    "an operation": SOURCE.replace("+ 1", "- 1"),
    "a name": SOURCE.replace("X", "Y"),
    "a default": SOURCE.replace("None", "0"),
    "an argument": SOURCE.replace("a, *,", "a,"),
    "an order": "def f(a, *, b=None):\n    return a + 1\nX = 1\n",
}


@pytest.mark.parametrize("source", SAME.values(), ids=SAME)
def test_code_that_does_the_same_has_the_same_sum(source):
    assert source != SOURCE and syntax(source) == syntax(SOURCE)


@pytest.mark.parametrize("source", OTHER.values(), ids=OTHER)
def test_code_that_does_another_thing_has_another_sum(source):
    assert syntax(source) != syntax(SOURCE)


def test_the_sum_is_of_the_package_and_of_further_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    found = [source_sum(), source_sum((path,)), provenance([path])["code"]["sum"]]
    assert found[0] != found[1] == found[2] and len(found[0]) == 16
    source_sum.cache_clear()
    path.write_text(OTHER["a number"])
    assert source_sum((path,)) != found[1] and source_sum() == found[0]


def test_a_finished_run_of_other_code_is_used_with_a_warning(problem, finished, other_code):
    commit = (provenance()["code"]["commit"])[:10]
    with pytest.warns(
        OtherCodeWarning, match=f"Runs from before .*now commit {commit}.*delete its"
    ):
        record = run(problem, finished)
    assert record == read_run(finished)


def test_an_unfinished_run_of_other_code_raises_unless_accepted(
    problem, unfinished, alone, copied, other_code
):
    folder, before = copied(unfinished), json.loads((unfinished / "run.json").read_text())
    with pytest.raises(ValueError, match=f"run in {folder} was begun with other .*code of commit"):
        run(problem, folder)
    record = run(problem, folder, config=CONFIG, accept_other_code=True)
    assert_same_run(record, alone)
    (earlier,) = record.info["earlier"]
    assert earlier == {key: before[key] for key in ("code", "jax", "versions", "hardware")}
    assert record.info["code"] == other_code


def test_an_unfinished_run_of_other_code_without_a_checkpoint_begins_anew(
    problem, unfinished, alone, copied, other_code
):
    folder = copied(unfinished)
    (folder / "checkpoint.eqx").unlink()
    record = run(problem, folder)
    assert_same_run(record, alone)
    assert record.info["earlier"] == [] and record.info["code"] == other_code


def test_other_versions_and_flags_are_other_code(problem, finished, copied, monkeypatch):
    folder = copied(finished)
    rewrite(folder / "run.json", lambda info: info["versions"].update(jax="0.4.0", sympy="0"))
    with pytest.warns(OtherCodeWarning, match=rf"versions: jax 0.4.0, now {jax.__version__}\. To"):
        run(problem, folder)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true --xla_dump_to=/tmp/x")
    with pytest.warns(OtherCodeWarning, match="now '--xla_cpu_enable_fast_math=true'"):
        run(problem, folder)


def test_a_record_from_before_sums_of_the_code_goes_by_the_commit(problem, finished, copied):
    folder = copied(finished)
    rewrite(folder / "run.json", lambda info: info["code"].pop("sum"))
    assert run(problem, folder).info["status"] == "finished"
    rewrite(folder / "run.json", lambda info: info["code"].update(commit="abc", dirty=False))
    with pytest.warns(OtherCodeWarning, match=r"code of commit abc \(sum not recorded\), now"):
        run(problem, folder)


def test_a_measurement_of_other_code_is_used_with_a_warning(tmp_path, request):
    measured_once(tmp_path, "m", {"n": 1}, lambda: 1)
    request.getfixturevalue("other_code")
    with pytest.warns(OtherCodeWarning, match="Measurements from before"):
        measured_once(tmp_path, "m", {"n": 1}, lambda: 1)


# Arguments, before anything compiles


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"seed": True}, TypeError, "seed must be an integer; found True"),
        ({"seed": "3"}, TypeError, "seed must be an integer; found '3'"),
        (
            {"seed": 2**32},
            ValueError,
            r"seed must be an integer from 0 to 2\*\*32 - 1; found 42949",
        ),
        ({"seed": 2**70}, ValueError, r"seed must be an integer from 0 to 2\*\*32 - 1; found 118"),
        ({"checkpoint_seconds": "abc"}, TypeError, "checkpoint_seconds must be a number; fou.*abc"),
        (
            {"checkpoint_seconds": None},
            TypeError,
            "checkpoint_seconds must be a number; found None",
        ),
        ({"checkpoint_seconds": -1}, ValueError, "checkpoint_seconds must be at least 0; found -1"),
        (
            {"checkpoint_seconds": np.nan},
            ValueError,
            "checkpoint_seconds must be at least 0; .*nan",
        ),
        (
            {"show_progress": "yes"},
            TypeError,
            "show_progress must be True, False or None; found 'y",
        ),
        ({"rate": 1e39}, ValueError, "the learning rate must be finite; found inf at step 0"),
    ],
)
def test_arguments_are_checked_before_anything_compiles(
    problem, tmp_path, monkeypatch, options, kind, message
):
    monkeypatch.setattr(loop, "make_stepper", None)
    with pytest.raises(kind, match=message):
        run(problem, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_seeds_that_are_accepted_have_keys_of_their_own():
    seeds = (0, 1, 2**31, 2**32 - 1)
    keys = {tuple(np.asarray(jax.random.key_data(jax.random.key(seed)))) for seed in seeds}
    assert len(keys) == len(seeds)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"num_steps": 2**31},
            ValueError,
            "num_steps must be at most 2147483647; found 2147483648",
        ),
        ({"compiler_options": "fast"}, TypeError, "compiler_options must be a dict or None; found"),
    ],
)
def test_wrong_settings_raise(change, kind, message):
    values = {"num_steps": 1, "batch_size": 1, "eval_every": 1, "steps_per_call": 1}
    with pytest.raises(kind, match=message):
        Settings(**{**values, **change})


def test_a_rate_that_is_not_finite_later_is_not_recorded(problem, tmp_path):
    with pytest.raises(ValueError, match="learning rate must be finite; found nan at step 20"):
        loop.train(
            problem, FORWARD, optax.sgd(0.01), lambda step: np.nan if step == 20 else 0.01,
            SETTINGS, seed=0, folder=tmp_path, show_progress=False,
        )  # fmt: skip
    assert [row.step for row in read_run(tmp_path).metrics] == [0]
