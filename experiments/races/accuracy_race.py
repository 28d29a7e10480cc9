"""The race of the paper's MLP: the accuracy that each family of estimators trains to.

On MNIST, with backprop and controls among the lines. Part of `reproduce`; alone:

    python -m experiments.races.accuracy_race preset=quick
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "accuracy_race"
_race = Race(NAME, "Test error for equal operations: the MLP")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.accuracy_race")
