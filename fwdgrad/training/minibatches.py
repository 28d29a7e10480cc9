"""The minibatches of a run: of arrays on the device, or of a loader.

Whichever it is, a block of steps is one call of a compiled program, (examples, indices), in which
row i of `indices` names the examples of step i. Of arrays the examples are the whole set; of a
loader they are the minibatches of this block alone, copied to the device while the block before it
runs.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.util.trees import PyTree


class Minibatches(Protocol):
    """The protocol of a run's minibatches."""

    def block(self, first: int, count: int) -> tuple[PyTree, np.ndarray]:
        """Return the examples of `count` steps from step `first` on, and their indices.

        Indices are int32 (steps_per_call, batch_size); the rows after the first `count` are of any
        examples.
        """
        ...


def minibatches(train: Any, *, batch_size: int, steps_per_call: int, seed: int) -> Minibatches:
    """Return the minibatches of a training set.

    Args:
      train: arrays that share their first axis, or a loader (`fwdgrad.training.is_loader`).
      batch_size: examples of a minibatch.
      steps_per_call: the most steps in a block.
      seed: of the order of the examples.

    Raises:
      ValueError: the arrays have fewer examples than a minibatch.
    """
    if is_loader(train):
        return _OfLoader(train, batch_size, steps_per_call, seed)
    return _OfArrays(train, batch_size, steps_per_call, seed)


def is_loader(examples: Any) -> bool:
    """Return whether a set of examples is a loader: an object with a method `batches(seed)`."""
    return callable(getattr(examples, "batches", None))


def first_examples(examples: Any, number: int, *, skip: int = 0) -> PyTree:
    """Return some examples of a set as arrays; fewer if it has no more.

    Args:
      examples: arrays that share their first axis, or a loader, whose first epoch is read.
      number: of the examples.
      skip: examples before them.
    """
    if not is_loader(examples):
        return jax.tree.map(lambda x: x[skip : skip + number], examples)
    read: list[PyTree] = []
    have = 0
    for batch in map(_as_arrays, examples.batches(0)):
        read.append(batch)
        have += _length(batch)
        if have >= skip + number:
            break
    if not read:
        raise ValueError(_EMPTY)
    return jax.tree.map(lambda *x: np.concatenate(x)[skip : skip + number], *read)


class _OfArrays:
    def __init__(self, train: PyTree, batch_size: int, steps_per_call: int, seed: int):
        self._train = jax.tree.map(jnp.asarray, train)  # on the device, once
        self._capacity = steps_per_call
        self._order = Batches(_length(train), batch_size, seed)

    def block(self, first: int, count: int) -> tuple[PyTree, np.ndarray]:
        return self._train, self._order.indices(first, count, capacity=self._capacity)


_EMPTY = (
    "train must yield minibatches; found a loader whose `batches` yields none. It is called once "
    "for each epoch, and must return a new iterator each time."
)


class _OfLoader:
    """Minibatches of a loader, read and copied to the device in a thread of their own."""

    def __init__(self, loader: Any, batch_size: int, steps_per_call: int, seed: int):
        self._loader, self._batch_size, self._capacity = loader, batch_size, steps_per_call
        self._seed, self._next = seed, 0
        self._stream = self._whole()
        self._ready: deque[PyTree] = deque()
        self._reading: Future[list[PyTree]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="minibatches")

    def block(self, first: int, count: int) -> tuple[PyTree, np.ndarray]:
        if first != self._next:
            self._restart(first)
        while len(self._ready) < count:
            self._ready.extend((self._reading or self._read()).result())
            self._reading = self._read()
        taken = [self._ready.popleft() for _ in range(count)]
        self._next = first + count
        taken += taken[-1:] * (self._capacity - count)
        examples = jax.tree.map(lambda *x: jnp.concatenate(x), *taken)
        shape = self._capacity, self._batch_size
        return examples, np.arange(np.prod(shape), dtype=np.int32).reshape(shape)

    def _restart(self, first: int) -> None:
        """Go on at a step, past the minibatches before it."""
        if self._reading is not None:
            self._reading.result()
        self._ready.clear()
        self._reading = None
        self._stream = itertools.islice(self._whole(), first, None)

    def _read(self) -> "Future[list[PyTree]]":
        def read() -> list[PyTree]:
            return [jax.device_put(x) for x in itertools.islice(self._stream, self._capacity)]

        return self._thread.submit(read)

    def _whole(self) -> Iterator[PyTree]:
        """Yield whole minibatches, epoch after epoch; an incomplete one is left out.

        Raises:
          ValueError: a minibatch has too many examples, or an epoch has no whole one.
        """
        for epoch in itertools.count():
            seed = int(np.random.default_rng([self._seed, epoch]).integers(2**31))
            sizes = set()
            for batch in map(_as_arrays, self._loader.batches(seed)):
                sizes.add(size := _length(batch))
                if size > self._batch_size:
                    break
                if size == self._batch_size:
                    yield batch
            if self._batch_size not in sizes or max(sizes) > self._batch_size:
                if not sizes:
                    raise ValueError(_EMPTY)
                raise ValueError(
                    f"train must yield minibatches of batch_size={self._batch_size} examples; "
                    f"found {', '.join(map(str, sorted(sizes)))}. Give both the same number."
                )


def _as_arrays(batch: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, batch)


def _length(examples: PyTree) -> int:
    return jax.tree.leaves(examples)[0].shape[0]


class Batches:
    """The examples of each step: a new random order every epoch, whole minibatches only.

    Step i of a run with a given seed always gets the same examples, whichever estimator runs
    and wherever the run was interrupted; the last, incomplete minibatch of an epoch is left
    out, as the paper's data loader may do or not (its minibatch does not divide the set).

    >>> batches = Batches(num_examples=10, batch_size=3, seed=0)
    >>> np.array_equal(batches.indices(5, 2, capacity=4)[0], batches.indices(4, 2, capacity=4)[1])
    True
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int):
        if batch_size > num_examples:
            raise ValueError(
                f"batch_size must be at most the number of training examples, {num_examples}; "
                f"found {batch_size}."
            )
        self._num_examples, self._batch_size, self._seed = num_examples, batch_size, seed
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def indices(self, first: int, count: int, *, capacity: int) -> np.ndarray:
        """Return the examples of `count` steps from step `first` on, int32 (capacity, batch_size).

        The rows after the first `count` are zero.
        """
        result = np.zeros((capacity, self._batch_size), np.int32)
        per_epoch = self._num_examples // self._batch_size
        for row, step in enumerate(range(first, first + count)):
            epoch, position = divmod(step, per_epoch)
            if epoch != self._epoch:
                generator = np.random.default_rng([self._seed, epoch])
                order = generator.permutation(self._num_examples).astype(np.int32)
                self._epoch, self._order = epoch, order
            start = position * self._batch_size
            result[row] = self._order[start : start + self._batch_size]
        return result
