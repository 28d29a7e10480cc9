"""Tables of times made by hand: each line's seconds are a multiple of those of the loss alone."""

from fwdgrad.records import write_json, write_table


def write_step_cost(folder, panels, processes=3, turns=2):
    """Write the tables of `step_cost`: panel -> (the step, line -> R), the same in each process."""
    rows = [
        (panel, line, process, turn, relative / 1000)
        for panel, (_, costs) in panels.items()
        for line, relative in {"loss": 1.0, **costs}.items()
        for process in range(processes)
        for turn in range(turns)
    ]
    columns = ("panel", "program", "process", "turn", "seconds")
    write_table(folder / "step_cost_timings.csv", columns, rows)
    about = {panel: {"title": panel, "step": step} for panel, (step, _) in panels.items()}
    write_json(folder / "step_cost.json", {"panels": about})
