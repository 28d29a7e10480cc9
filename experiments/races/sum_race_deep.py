"""The race on the sum of two digits, with four hidden layers.

Like the race of the MLP with two hidden layers, with fewer lines. Part of `reproduce`; alone:

    python -m experiments.races.sum_race_deep preset=quick shown=[sum_race_deep]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "sum_race_deep"
_race = Race(NAME, "Test error on the digit sum: four hidden layers")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.sum_race_deep")
