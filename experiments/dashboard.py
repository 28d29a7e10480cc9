"""A page of all runs under a folder: python -m experiments.dashboard output.root=results

Leaves one HTML file, `page`, with curves, filters, a sortable table of final numbers, and the
provenance of the run that is clicked. The file needs no server and fetches nothing: it can be
mailed, or copied from a cluster and opened.
"""

from pathlib import Path

from omegaconf import DictConfig

from experiments.common import commands, settings
from experiments.dashboard_runs import find_runs, rows
from fwdgrad.records import atomic_write


@commands.with_config("dashboard")
def command(cfg: DictConfig) -> None:
    """Write the page.

    Raises:
      FileNotFoundError: there is no run under the folder.
      ModuleNotFoundError: Bokeh is not installed.
    """
    try:
        from experiments import dashboard_page
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"experiments.dashboard needs the module {error.name!r}, which is not installed. "
            "Install the extra: pip install -e '.[dashboard]'.",
            name=error.name,
        ) from error
    root, path = settings.root(cfg), Path(cfg.page).expanduser()
    runs, damaged = find_runs(root)
    if not runs and not damaged:
        raise FileNotFoundError(
            f"output.root={root} holds no run: no folder seed-<number> is under it. Name the "
            "folder of runs, as output.root=results/runs."
        )
    with atomic_write(path) as file:
        file.write(dashboard_page.html(rows(runs), damaged, str(root)))
    print(f"{len(runs)} runs, {len(damaged)} damaged: open {path}")


if __name__ == "__main__":
    commands.start("experiments.dashboard")
