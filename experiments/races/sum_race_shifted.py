"""The race on the sum of two digits, with shifted training images.

Each image of a minibatch is shifted by up to two pixels, which random features do not learn well.
Part of `reproduce`; alone:

    python -m experiments.races.sum_race_shifted preset=quick shown=[sum_race_shifted]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "sum_race_shifted"
_race = Race(NAME, "Test error on the digit sum: shifted training images")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.sum_race_shifted")
