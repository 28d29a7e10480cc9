"""The race on the sum of two digits: do hidden layers learn by forward mode, where they have to?

The MLP by each family of estimators and its nearest rivals, with equal steps. Part of `reproduce`;
alone:

    python -m experiments.races.sum_race preset=quick shown=[sum_race]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "sum_race"
_race = Race(NAME, "Test error on the digit sum: the MLP")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.sum_race")
