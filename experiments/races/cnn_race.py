"""The race of the paper's CNN: accuracy by activity perturbation, and its control.

Like the race of the MLP, with fewer lines and seeds. Part of `reproduce`; alone:

    python -m experiments.races.cnn_race preset=quick
"""

from experiments.common import alone, commands
from experiments.races.race import Race

NAME = "cnn_race"
_race = Race(NAME, "Test error for equal operations: the CNN")
run, draw, describe, train_line = _race.run, _race.draw, _race.describe, _race.train_line
command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.races.cnn_race")
