"""Regression on the outputs of a fixed random network, the teacher."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from fwdgrad import combine, partition
from fwdgrad.problems.models import MLP
from fwdgrad.problems.problem import Batch, Problem
from fwdgrad.util.trees import PyTree
from fwdgrad.util.validation import check_positive_integer


def regression(
    num_inputs: int = 16,
    teacher_width: int = 32,
    widths: Sequence[int] = (64, 64),
    num_examples: int = 20_000,
    seed: int = 0,
) -> Problem:
    """Return the regression of an MLP, the student, on a random network, the teacher.

    An example is x ~ N(0, I) of n inputs and y = aᵀ tanh(W x) of m hidden units, with
    W_ij ~ N(0, 1/n) and a_i ~ N(0, 1/m) fixed by the seed. The loss is the squared error
    (f(x) − y)², and there is no accuracy.

    Args:
      num_inputs: n.
      teacher_width: m.
      widths: of the student's hidden layers (`MLP`, with ReLU).
      num_examples: for training; the validation set and the test set have a tenth each.
      seed: of the teacher and the examples.

    Raises:
      TypeError, ValueError: a number is not a positive integer, or there are fewer than ten
        examples.

    Source: the setting of E. Gardner, B. Derrida, Three unfinished works on the optimal storage
    capacity of networks (1989).

    >>> problem = regression(num_inputs=3, widths=(8,), num_examples=40)
    >>> [x.shape for x in problem.train], [y.shape for y in problem.test]
    ([(40, 3), (40,)], [(4, 3), (4,)])
    >>> problem.scores(problem.init(jax.random.key(0)), problem.test)["loss"].shape
    (4,)
    """
    for name, value in (("num_inputs", num_inputs), ("teacher_width", teacher_width)):
        check_positive_integer(name, value)
    check_positive_integer("num_examples", num_examples)
    if num_examples < 10:
        raise ValueError(
            f"num_examples must be at least 10, since the validation set and the test set have a "
            f"tenth of it; found {num_examples}."
        )
    teacher_key, *keys = jax.random.split(jax.random.key(seed), 4)
    first, second = jax.random.split(teacher_key)
    weights = jax.random.normal(first, (num_inputs, teacher_width)) / num_inputs**0.5
    readout = jax.random.normal(second, (teacher_width,)) / teacher_width**0.5
    tenth = num_examples // 10

    def examples(key: Array, number: int) -> tuple[Array, Array]:
        x = jax.random.normal(key, (number, num_inputs))
        return x, jnp.tanh(x @ weights) @ readout

    def student(key: Array) -> MLP:
        return MLP(tuple(widths), shape=(num_inputs,), num_classes=1, key=key)

    _, static = partition(student(keys[0]))

    def scores(params: PyTree, batch: Batch) -> dict[str, Array]:
        x, y = batch
        return {"loss": (jax.vmap(combine(params, static))(x)[:, 0] - y) ** 2}

    sizes = (num_examples, tenth, tenth)
    train, valid, test = map(examples, keys, sizes)
    return Problem(lambda key: partition(student(key))[0], scores, train, valid, test)
