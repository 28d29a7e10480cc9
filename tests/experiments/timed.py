"""Tables of times made by hand: each line's seconds are a multiple of those of the loss alone."""

from fwdgrad.records import write_json, write_table

FACTS = {"compile_seconds": 1.0, "temp_bytes": 2**20, "total_bytes": 2**21, "operations": 1e6}
STEP = {"model": {}, "dataset": {}, "batch_size": 64}
R = {"backprop": 2.5, "backprop-checkpointed": 3.5, "forward-normal": 3, "forward-low_rank": 1.5}


def write_step_cost(folder, panels, processes=3, turns=2, **about):
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
    information = {
        panel: {
            "title": panel, "step": step, "paper": None, "changed": "",
            "facts": dict.fromkeys(("loss", *costs), FACTS), **about,
        }
        for panel, (step, costs) in panels.items()
    }  # fmt: skip
    of_processes = [{"of": [panel], "process": i} for panel in panels for i in range(processes)]
    write_json(folder / "step_cost.json", {"panels": information, "processes": of_processes})
