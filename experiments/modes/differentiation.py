"""Three ways to a derivative, and both modes of automatic differentiation: four figures.

The accuracy of numerical differentiation, the size of symbolic derivatives, the cheaper mode by
shape of the Jacobian, and the error of the forward gradient, each a module of its own. Part of
`reproduce`; alone:

    python -m experiments.modes.differentiation preset=quick

Leaves a CSV and a figure for each part, and `differentiation.json`. Each part is
measured once.
"""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.common import alone, commands, jobs
from experiments.common.budget import measured_once
from experiments.modes import estimator_error, expression_swell, jacobian_modes, step_sizes
from fwdgrad.records import write_table

NAME = "differentiation"
# Each has measure(config) -> rows of COLUMNS, and of the table of them draw(folder) and
# describe(folder).
PARTS = (step_sizes, expression_swell, jacobian_modes, estimator_error)


def run(cfg: DictConfig, folder: Path) -> None:
    """Measure each part, or read it back, and write the tables."""
    experiment: Any = OmegaConf.to_container(cfg.experiments[NAME], resolve=True)
    records = []
    bar = jobs.progress(PARTS, cfg, NAME)
    for part in bar:
        bar.set_postfix_str(part.NAME)
        config = experiment[part.NAME]
        measure = partial(part.measure, config)
        record = measured_once(folder / "runs" / NAME, part.NAME, config, measure)
        write_table(folder / f"{part.NAME}.csv", part.COLUMNS, record["result"])
        records.append(record)
    tables = [part.NAME for part in PARTS]
    jobs.write_information(folder, NAME, tables, jobs.provenance_of(records))


def draw(folder: Path) -> None:
    """Draw the four figures from the tables in `folder`."""
    for part in PARTS:
        part.draw(folder)


def describe(folder: Path) -> str:
    """Return the section of the report, in Markdown."""
    heading = "## Three ways to a derivative, and the two modes of one of them"
    return "\n\n".join([heading, *(part.describe(folder) for part in PARTS)])


command = alone.command_of(__name__)


if __name__ == "__main__":
    commands.start("experiments.modes.differentiation")
