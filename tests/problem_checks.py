"""Assertions on a problem of any kind, and on what commands measure of it; a small CIFAR-10."""

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad import check_examples_independent
from fwdgrad.problems.cifar import _FILES, Cifar10
from fwdgrad.training import first_examples


def cifar_rows(file, number):
    """Return the content of a file: each row a label, then the red, green and blue channel."""
    generator = np.random.default_rng(_FILES.index(file))
    found = generator.integers(0, 256, (number, 3_073), np.uint8)
    found[:, 0] %= 10
    return found


def small_cifar(folder, rows):
    """Write six files of the format of CIFAR-10, and return a source that reads them."""
    for file in _FILES:
        (folder / file).write_bytes(cifar_rows(file, rows).tobytes())
    return Cifar10("http://127.0.0.1:0/", "cifar-10-binary.tar.gz", "0" * 64, rows=rows)


def check_problem(problem, key):
    """Assert that parameters are floats alone, scores are of examples, and a gradient descends."""
    params = problem.init(key)
    assert all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(params))
    sets = [first_examples(x, 8) for x in (problem.train, problem.valid, problem.test)]
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), part) for part in sets]
    assert shapes[0] == shapes[1] == shapes[2]
    scores = jax.eval_shape(problem.scores, params, sets[0])
    assert {x.shape for x in scores.values()} == {(8,)}
    assert jnp.issubdtype(scores["loss"].dtype, jnp.floating)
    check_examples_independent(problem.loss, params, sets[0])

    @jax.jit
    def descended(params, batch):
        value, grad = jax.value_and_grad(problem.loss)(params, batch)
        norm = sum(jnp.sum(x**2) for x in jax.tree.leaves(grad))
        step = jax.tree.map(lambda w, g: w - 1e-3 * value / norm * g, params, grad)
        return problem.loss(step, batch) / value

    assert 0.998 < descended(params, sets[0]) < 0.9999  # 0.999 to first order


def check_measured(name, compose, folder):
    """Assert that `step_cost` and `compare` measure all estimators on a problem of `examples`."""
    from experiments import compare
    from experiments.common import alone
    from experiments.cost import step_cost
    from fwdgrad.records import read_json, read_table

    target = f"problem._target_=examples.problems.{name}.make_problem"
    quoted = ",".join(f"'{x}'" for x in (target, "batch_size=8", "steps_per_call=1"))
    one = "experiments.step_cost.processes=1", "protocol.timing={processes: 1, rounds: 2}"
    quiet = f"output.root={folder}/cost", "output.progress=false"
    alone.run_alone(
        compose("reproduce", "preset=smoke", f"own=[{quoted}]", *one, *quiet), step_cost
    )
    lines = {row["estimator"] for row in read_table(folder / "cost" / "step_cost.csv")}
    assert {"backprop", "forward-normal", "forward-low_rank", "layerwise-1"} <= lines
    small = "batch_size=8", "max_keys=6", "max_seconds=5", f"output.root={folder}/compare"
    compare.command(compose("compare", target, *small))
    rows = read_table(folder / "compare" / "compare.csv")
    cosines = [float(row["value"]) for row in rows if row["quantity"] == "cosine"]
    assert len(cosines) == 8 and all(0 < abs(x) < 1 + 1e-5 for x in cosines)
    notes = read_json(folder / "compare" / "compare.json")["notes"]
    assert all(note.startswith("activities") and "Error" not in note for note in notes)
