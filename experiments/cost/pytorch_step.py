"""A step of backprop of the paper's CNN in PyTorch, for comparison where it is installed.

PyTorch is no dependency; `experiments.cost.step_cost` times it too if `import torch` works.
"""

import importlib.util
from collections.abc import Callable

import numpy as np

RATE = 1e-6


def is_installed() -> bool:
    """Return whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def cnn_steps(images: np.ndarray, labels: np.ndarray) -> dict[str, Callable[[], float]]:
    """Return functions that make one step of SGD on a minibatch, one for each memory format.

    Args:
      images: standardised, float32 (n, 28, 28).
      labels: int (n,).
    """
    import torch
    from torch import nn

    def make(memory_format: torch.memory_format) -> Callable[[], float]:
        convolutions: list[nn.Module] = []
        for inputs, last in ((1, False), (64, True), (64, False), (64, True)):
            convolutions += [nn.Conv2d(inputs, 64, 3, padding=1), nn.ReLU()]
            convolutions += [nn.MaxPool2d(2)] if last else []
        head = [nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, 10)]
        model = nn.Sequential(*convolutions, *head).to(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        x = torch.from_numpy(np.array(images))[:, None].to(memory_format=memory_format)
        y = torch.from_numpy(np.array(labels, np.int64))

        def step() -> float:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return {
        "contiguous": make(torch.contiguous_format),
        "channels last": make(torch.channels_last),
    }
