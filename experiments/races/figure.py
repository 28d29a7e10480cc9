"""The figure of a race: the final test error of every line, and errors against operations."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.common import style
from experiments.races.results import About, Lines
from fwdgrad.measurement import mean_interval

# The colours of families.
FAMILIES = {
    "backprop": "#000000", "control": "#777777", "activity": "#0072B2", "local": "#009E73",
    "weight": "#D55E00",
}  # fmt: skip


def race_figure(lines: Lines, about: About) -> Figure:
    """Draw the test error of each line, the least first, and validation errors on the way."""
    figure, (ends, by_operations) = plt.subplots(1, 2, figsize=(9, 4))
    ordered = sorted(lines.items(), key=lambda item: item[1].accuracy)
    for i, (name, line) in enumerate(ordered):
        colour = FAMILIES[about[name]["family"]]
        value, low, high, _ = mean_interval(100 * (1 - line.test_accuracy))
        errors = np.nan_to_num([[value - low], [high - value]])
        ends.errorbar(value, i, xerr=errors, fmt="o", color=colour, ms=4)
        error = 100 * (1 - line.columns["valid_accuracy"])
        operations = line.columns["flops"].mean(0)[1:] / 1e12
        by_operations.plot(operations, error.mean(0)[1:], color=colour, label=style.label(name))
    ends.set_yticks(range(len(ordered)), [style.label(name) for name, _ in ordered])
    ends.set_xlabel("test error (%)")
    by_operations.set(xlabel="operations (10¹²)", ylabel="validation error (%)")
    for panel, which in ((ends, "x"), (by_operations, "xy")):
        style.log_scale(panel, which)
    return figure
