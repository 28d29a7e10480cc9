"""The race of the paper's MLP: the accuracy that each family of estimators trains to.

A race (`race`) on MNIST, with backprop and controls among the lines. Part of
`reproduce`; alone:

    python -m experiments.races.accuracy_race preset=quick
"""

import sys

from omegaconf import DictConfig

from experiments.common import commands, jobs
from experiments.races.race import Race

NAME = "accuracy_race"
_race = Race(NAME, "Accuracy in equal time: the MLP")
run, draw, describe, findings = _race.run, _race.draw, _race.describe, _race.findings


@commands.with_config("reproduce")
def command(cfg: DictConfig) -> None:
    jobs.run_alone(cfg, sys.modules[__name__])


if __name__ == "__main__":
    commands.start("experiments.races.accuracy_race")
