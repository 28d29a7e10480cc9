"""The race of optimizers: which of them suits the noise of an estimate?

Three gradients with SGD, momentum, Adam, and Adam without the variance of the estimate in its
second moment. Part of `reproduce`; alone:

    python -m experiments.races.optimizer_race preset=quick shown=[optimizer_race]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "optimizer_race"
_race = Race(NAME, "Test error by optimizer: the MLP")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.optimizer_race")
