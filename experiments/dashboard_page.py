"""The dashboard's page: runs as curves and as a table in one HTML file, by Bokeh.

All parts read one table, a row for each run and for each mean: a filter or a click changes the
curves, the marks at their ends and the table alike.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column, gridplot, row
from bokeh.models import (
    CDSView,
    ColumnDataSource,
    CustomJS,
    DataRange1d,
    DataTable,
    Div,
    HoverTool,
    HTMLTemplateFormatter,
    IndexFilter,
    MultiChoice,
    RadioButtonGroup,
    TableColumn,
)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from experiments.common import style
from experiments.dashboard_runs import CEILING, GROUPS, MEAN, NUMBERS, Row
from experiments.dashboard_text import details, heading, note

_CURVES = {
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "valid_accuracy": "validation accuracy",
}
_AXES = ("step", "seconds")
_MARKERS = {"finished": "circle", "running": "triangle", "diverged": "x"}
_MANY = 60  # lines, above which the page opens with means alone, of the commonest of these groups
_OPENED = ("problem", "model", "dataset", "seed")
_COMPARED = 4  # selected runs of which details are shown, side by side
_BELOW = {  # in sight wherever the page is scrolled to
    "position": "sticky", "bottom": "0", "max-height": "45vh", "overflow": "auto",
    "background": "white", "border-top": f"1px solid {style.GREY}", "z-index": "10",
}  # fmt: skip
# A filter with a choice does not say "all".
_NO_PLACEHOLDER = (
    ".choices__list--multiple:not(:empty) + input::placeholder { color: transparent; }"
)
_PALE = "#dddddd"  # of curves beside the selected ones

_FILTER = """
const d = source.data, kept = []
for (let i = 0; i < d.name.length; i++)
  if (Object.entries(chosen).every(
    ([c, w]) => !w.value.length || d[c][i].some(x => w.value.includes(x)))) kept.push(i)
filter.indices = kept
shown.text = `<b>${kept.length}</b> of ${d.name.length} lines shown`
"""
_SELECT = """
const picked = cb_obj.indices.slice(0, most)
below.text = picked.map(i => source.data.details[i]).join("") || below.tags[0]
"""
_SWITCH = """
const x = ["step", "seconds"][cb_obj.active]
for (const g of lines) g.xs = {field: x}
for (const g of ends) g.x = {field: `${x}_end`}
for (const a of axes) a.axis_label = ["steps", "seconds of training"][cb_obj.active]
"""
# Of the table: column, title, width. Tangents are part of the estimator's name.
_COLUMNS = (
    ("estimator", "estimator", 250),
    ("problem", "problem", 110),
    ("model", "model", 80),
    ("dataset", "data set", 80),
    ("number", "K", 40),
    ("final_rate", "rate", 65),
    ("optimizer", "optimizer", 125),
    ("seed", "seed", 95),
    ("status", "status", 65),
    ("final_step", "steps", 60),
    ("final_train_loss", "train loss", 70),
    ("final_valid_loss", "valid loss", 70),
    ("final_valid_accuracy", "valid acc.", 70),
    ("final_test_loss", "test loss", 70),
    ("final_test_accuracy", "test acc.", 70),
    ("final_seconds", "seconds", 65),
    ("platform", "platform", 65),
    ("name", "folder", 400),
)
_FINITE = "typeof value === 'number' && isFinite(value)"
_NUMBER = f"<%= {_FINITE} ? +value.toPrecision(3) : '–' %>"
_TEXT = "<span title='<%- value %>'><%- value %></span>"
_TEMPLATES = {
    **dict.fromkeys((*GROUPS, "name"), _TEXT),
    "estimator": f"<b style='color:<%= colour %>'>■</b> {_TEXT}",
    "final_step": f"<%= {_FINITE} ? Math.round(value) : '–' %>",
}


def html(rows: Sequence[Row], damaged: Sequence[str], root: str) -> str:
    """Return the page.

    Args:
      rows: runs and means over seeds.
      damaged: a sentence for each run that cannot be read.
      root: the folder, for the title.
    """
    looks = _looks({row.key for row in rows})
    source = ColumnDataSource(_columns(rows, looks))
    view = CDSView(filter=IndexFilter())
    several = [name for name in GROUPS if len({row.groups[name] for row in rows}) > 1]
    chosen = {f"in_{name}": _choices(rows, name) for name in several}
    shown = Div(text="", width=180)
    apply = CustomJS(
        args={"source": source, "filter": view.filter, "chosen": chosen, "shown": shown},
        code=_FILTER,
    )
    for widget in chosen.values():
        widget.js_on_change("value", apply)
    panels = _panels(rows, source, view)
    below = Div(sizing_mode="stretch_width", name="details", styles=_BELOW)
    below.tags = [note("Click a curve, a mark or a line of the table: its provenance is here.")]
    below.text = below.tags[0]
    select = CustomJS(args={"source": source, "below": below, "most": _COMPARED}, code=_SELECT)
    source.selected.js_on_change("indices", select)
    grid = gridplot(
        [panels], sizing_mode="stretch_width", toolbar_location="right",
        toolbar_options={"logo": None},
    )  # fmt: skip
    parts = [
        Div(text=heading(rows, damaged, root, looks), sizing_mode="stretch_width"),
        row(*chosen.values(), sizing_mode="stretch_width", styles={"flex-wrap": "wrap"}),
        row(_switch(panels), shown),
        grid,
        _table(several, source, view),
        below,
    ]
    document = Document(title=f"Runs of {root}")
    document.add_root(column(*parts, sizing_mode="stretch_width", styles={"padding": "0 12px"}))
    document.js_on_event(DocumentReady, apply)
    return file_html(document, INLINE)


def _columns(rows: Sequence[Row], looks: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Return the columns of the page's table: of curves, numbers, groups and looks."""
    is_mean = [len(row.runs) > 1 for row in rows]
    columns: dict[str, Any] = {
        "name": [row.name for row in rows],
        "details": [details(row) for row in rows],
        "colour": [looks[row.key][0] for row in rows],
        "dash": [looks[row.key][1] for row in rows],
        "width": [2.0 if mean else 1.0 for mean in is_mean],
        "alpha": [1.0 if MEAN in row.seed_choices else 0.35 for row in rows],
        "marker": [_MARKERS[row.groups["status"]] for row in rows],
    }
    for name in (*_AXES, *_CURVES):
        curves = [row.curve[name].astype(np.float32) for row in rows]
        ends = np.array([row.numbers[name] for row in rows])
        ceiling = _ceiling(curves) if name.endswith("loss") else np.inf
        columns[name] = [np.minimum(curve, ceiling) for curve in curves]
        columns[f"{name}_end"] = np.minimum(ends, ceiling)
    for name in NUMBERS:
        columns[f"final_{name}"] = np.array([row.numbers[name] for row in rows])
    ks = [row.groups["K"] for row in rows]
    columns["number"] = np.array([float(k) if k.isdigit() else np.nan for k in ks])
    for name in GROUPS:
        columns[name] = [row.groups[name] for row in rows]
        columns[f"in_{name}"] = [[row.groups[name]] for row in rows]
    columns["in_seed"] = [list(row.seed_choices) for row in rows]
    return columns


def _ceiling(curves: Sequence[np.ndarray]) -> float:
    """Return the largest loss to draw: training that explodes must not flatten all other curves."""
    first = [curve[0] for curve in curves if len(curve) and np.isfinite(curve[0])]
    return CEILING * max(first) if max(first, default=0) > 0 else np.inf


def _looks(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return key of an estimator -> colour and dashes; variants are dashed, in one colour."""
    known, more = dict(style.COLOURS), itertools.cycle(style.MORE_COLOURS)
    looks = {}
    for key in sorted(keys):  # a key before its variants
        bases = [base for base in known if key == base or key.startswith(f"{base}-")]
        base = max(bases, key=len, default=key)
        if not bases:
            known[key] = next(more)
        looks[key] = (known[base], "solid" if key == base else "dashed")
    return looks


def _choices(rows: Sequence[Row], group: str) -> MultiChoice:
    """Return a filter by the values of a group, numbers in their order."""
    values = {row.groups[group] for row in rows if group != "seed" or len(row.runs) == 1}
    ordered = sorted(values, key=lambda x: (not x.isdigit(), int(x) if x.isdigit() else 0, x))
    chosen: list[str] = []
    if group == "seed":
        ordered = [MEAN, *ordered]
    if len(rows) > _MANY and group in _OPENED:
        most = Counter(row.groups[group] for row in rows).most_common(1)
        chosen = [MEAN if group == "seed" else most[0][0]]
    return MultiChoice(
        title=group, value=chosen, options=[(x, escape(x)) for x in ordered], name=group,
        placeholder="all", width=136, stylesheets=[_NO_PLACEHOLDER],
    )  # fmt: skip


def _panels(rows: Sequence[Row], source: ColumnDataSource, view: CDSView) -> list[Any]:
    """Return a figure of each curve that any run has: lines, and marks at their ends."""
    panels: list[Any] = []
    for name, title in _CURVES.items():
        values = np.concatenate([np.empty(0), *(row.curve[name] for row in rows)])
        values = values[np.isfinite(values)]
        if not values.size and name.endswith("accuracy"):
            continue
        is_log = name.endswith("loss") and bool((values > 0).all())
        panel = figure(
            title=title, x_axis_label="steps", y_axis_type="log" if is_log else "linear",
            height=300, sizing_mode="stretch_width", tools="pan,wheel_zoom,box_zoom,reset,tap",
            active_drag="box_zoom", name=name,
            x_range=panels[0].x_range if panels else DataRange1d(),
        )  # fmt: skip
        common = {"source": source, "view": view}
        lines = panel.multi_line(
            "step", name, line_color="colour", line_dash="dash", line_width="width",
            line_alpha="alpha", nonselection_line_color=_PALE, nonselection_line_alpha=1, **common,
        )  # fmt: skip
        panel.scatter(
            "step_end", f"{name}_end", marker="marker", color="colour", size=6,
            fill_alpha="alpha", line_alpha="alpha", nonselection_color=_PALE, nonselection_alpha=1,
            **common,
        )  # fmt: skip
        tips = [("", "@name"), ("rate", "@final_rate"), ("seed", "@seed"), ("status", "@status")]
        panel.add_tools(HoverTool(renderers=[lines], tooltips=tips, limit=3))
        panels.append(panel)
    return panels


def _switch(panels: Sequence[Any]) -> RadioButtonGroup:
    """Return the choice of steps or seconds as the x axis of all panels."""
    glyphs = [[renderer.glyph for renderer in panel.renderers] for panel in panels]
    lines, ends = zip(*glyphs, strict=True)
    widget = RadioButtonGroup(labels=["steps", "seconds"], active=0, width=180, name="x")
    axes = [panel.xaxis[0] for panel in panels]
    args = {"lines": list(lines), "ends": list(ends), "axes": axes}
    widget.js_on_change("active", CustomJS(args=args, code=_SWITCH))
    return widget


def _table(several: Sequence[str], source: ColumnDataSource, view: CDSView) -> DataTable:
    """Return the table of final numbers; a click on a heading sorts it."""
    shown = [x for x in _COLUMNS if x[0] in ("estimator", *several) or x[0] not in GROUPS]
    columns = [
        TableColumn(
            field=field,
            title=title,
            width=width,
            formatter=HTMLTemplateFormatter(template=_TEMPLATES.get(field, _NUMBER)),
        )
        for field, title, width in shown
    ]
    return DataTable(
        source=source, view=view, columns=columns, sizing_mode="stretch_width", height=300,
        index_position=None, autosize_mode="none", reorderable=False, name="table",
    )  # fmt: skip
