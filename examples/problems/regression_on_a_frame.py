"""A pandas frame: problem._target_=examples.problems.regression_on_a_frame.make_problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fwdgrad.problems import Problem


def rents(number=500):
    """Return a frame: made rents of flats, with a column of categories."""
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"area": generator.uniform(20, 120, number)})
    frame["city"] = generator.choice(["Jena", "Ulm", "Bonn"], number)
    return frame.assign(rent=frame.area * frame.city.map({"Jena": 9, "Ulm": 12, "Bonn": 11}))


def make_problem(path=None, target="rent", width=16):
    """Predict a column of a frame (or of a CSV file) from the others by a network of one layer."""
    frame = pd.get_dummies(pd.read_csv(path) if path else rents()).astype("float32")
    frame = frame.sample(frac=1, random_state=0)
    train, valid, test = frame[:-100], frame[-100:-50], frame[-50:]
    mean, std = train.mean(), train.std()

    def arrays(part):
        part = (part - mean) / std
        return {"x": jnp.asarray(part.drop(columns=target)), "y": jnp.asarray(part[target])}

    def init(key):
        inputs, (first, second) = frame.shape[1] - 1, jax.random.split(key)
        w = jax.random.normal(first, (inputs, width)) / inputs**0.5
        return {"w": w, "b": jnp.zeros(width), "out": jax.random.normal(second, (width,)) / width}

    def scores(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["w"] + params["b"])
        return {"loss": (hidden @ params["out"] - batch["y"]) ** 2}

    return Problem(init, scores, *map(arrays, (train, valid, test)))
