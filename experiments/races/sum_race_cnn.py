"""The race on the sum of two digits by a CNN.

Like the race of the MLP, with fewer lines. Part of `reproduce`; alone:

    python -m experiments.races.sum_race_cnn preset=quick shown=[sum_race_cnn]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "sum_race_cnn"
_race = Race(NAME, "Test error on the digit sum: the CNN")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.sum_race_cnn")
