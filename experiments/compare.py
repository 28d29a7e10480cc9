"""The estimators compared on your own problem: python -m experiments.compare problem=…

One table, one figure and a recommendation: each estimator's cosine to the exact gradient, bias,
variance, time, memory, operations and compile time, at the start of training on one minibatch. Your
own problem: problem._target_=my_package.my_module.make_problem

Leaves in `output.root`: `compare.csv` (a row for each estimator and quantity), `compare.json`, the
figure `compare` and README.md.
"""

from omegaconf import DictConfig

from experiments.common import commands, settings
from experiments.quality import own_loss
from fwdgrad.records import atomic_write, hold


@commands.with_config(own_loss.NAME)
def command(cfg: DictConfig) -> None:
    folder = settings.root(cfg)
    with hold(folder):
        print(own_loss.run(cfg, folder))
        own_loss.draw(folder)
        with atomic_write(folder / "README.md") as file:
            file.write(f"{own_loss.describe(folder)}\n")


if __name__ == "__main__":
    commands.start("experiments.compare")
