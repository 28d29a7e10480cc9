"""The race of a CNN on single digits, by equal steps: does it learn from one global loss?

The lines are those of `sum_race_cnn`, and the same with noise in the first kernel
(`Activities(at_kernels=True)`). Part of `reproduce`; alone:

    python -m experiments.races.cnn_race_long preset=quick shown=[cnn_race_long]
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "cnn_race_long"
_race = Race(NAME, "Test error of a CNN of 16 channels, by equal steps")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.cnn_race_long")
