"""The race on the sum of two digits, with three times the steps.

Three lines of the race of the MLP: backprop, activity perturbation with a chained control variate,
and the first layer frozen. Part of `reproduce`; alone:

    python -m experiments.races.sum_race_long preset=quick shown=[sum_race_long]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "sum_race_long"
_race = Race(NAME, "Test error on the digit sum: three times the steps")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.sum_race_long")
