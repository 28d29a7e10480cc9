"""A CNN on images in colour: problem._target_=examples.problems.cnn_on_colours.make_problem."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from fwdgrad.problems import Dataset, Examples, image_classification, load_dataset


class Small(eqx.Module):
    convolution: eqx.nn.Conv2d
    output: eqx.nn.Linear

    def __init__(self, shape, num_classes, key):
        first, second = jax.random.split(key)
        self.convolution = eqx.nn.Conv2d(shape[2], 8, 3, stride=2, key=first)
        self.output = eqx.nn.Linear(8, num_classes, key=second)

    def __call__(self, image):
        features = jax.nn.relu(self.convolution(jnp.moveaxis(image, 2, 0)))
        return self.output(features.mean((1, 2)))


def stripes(number, seed):
    """Return images of the size of CIFAR-10's: one channel is striped, and names the class."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (number, 32, 32, 3), np.uint8)
    labels = generator.integers(0, 3, number, np.int32)
    images[np.arange(number), ::2, :, labels] = 255
    return Examples(images, labels)


def make_problem(folder=None):
    """Classify the images of CIFAR-10 if its folder is given, and made ones if not."""
    made = Dataset(stripes(600, 0), stripes(200, 1), stripes(200, 2), 0.5, 0.3, num_classes=3)
    return image_classification(Small, load_dataset("cifar10", folder) if folder else made)
