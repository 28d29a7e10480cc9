"""The words of the dashboard's page, as HTML: its heading, and the provenance of a row."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from experiments.common import style
from experiments.dashboard_runs import CEILING, GROUPS, MOST_POINTS, Row, Run
from fwdgrad.records import JAX_DEFAULTS

_CARD = (
    "display:inline-block; vertical-align:top; max-width:100%; width:560px; margin:0 16px 12px 0;"
)
_QUIET = f"color:{style.GREY}; margin:2px 0;"
_LABEL = f"{_QUIET} padding-right:10px; vertical-align:top; white-space:nowrap;"
_CODE = "font-size:11px; overflow:auto; max-height:360px; background:#f6f6f6; padding:6px;"


def note(text: str) -> str:
    """Return a quiet line."""
    return f"<p style='{_QUIET}'>{escape(text)}</p>"


def heading(
    rows: Sequence[Row], damaged: Sequence[str], root: str, looks: Mapping[str, tuple[str, str]]
) -> str:
    """Return the title, the groups that all runs share, the key of colours, and damaged runs.

    Args:
      rows: runs and means.
      damaged: a sentence for each run that cannot be read.
      root: the folder of the runs.
      looks: key of an estimator -> colour and dashes.
    """
    runs = [row for row in rows if len(row.runs) == 1]
    configs = {run.name.rpartition("/")[0] for row in runs for run in row.runs}
    shared = [
        f"{group} {row.groups[group]}"
        for group in GROUPS
        for row in runs[:1]
        if len({row.groups[group] for row in runs}) == 1
    ]
    names = {row.key: row.groups["estimator"] for row in rows}
    lines = "".join(
        f"<span style='white-space:nowrap; margin-right:14px'><span style='display:inline-block; "
        f"width:22px; border-top:3px {looks[key][1]} {looks[key][0]}; margin:0 5px 3px 0'></span>"
        f"{escape(names[key])}</span>"
        for key in sorted(names, key=lambda key: names[key])
    )
    said = [
        f"{len(runs)} runs of {len(configs)} configs.",
        "Thick lines are means over the seeds of a config that have not diverged, n in the table, "
        "without an interval; thin ones single runs.",
        f"Ends: ● finished, ▲ running, × diverged. Curves are thinned to at most {MOST_POINTS} "
        f"points, and losses above {CEILING} times the largest first loss are drawn as that.",
    ]
    if shared:
        said.append(f"In all runs: {', '.join(shared)}.")
    return (
        f"<h2 style='margin:8px 0 4px'>Runs of {escape(root)}</h2>{note(' '.join(said))}"
        f"<p style='margin:4px 0'>{lines}</p>{_damaged(damaged)}"
    )


def _damaged(damaged: Sequence[str]) -> str:
    if not damaged:
        return ""
    entries = "".join(f"<li>{escape(text)}</li>" for text in damaged)
    shown = f"<summary>{len(damaged)} damaged, and not shown</summary>"
    return f"<details open>{shown}<ul style='margin:2px 0'>{entries}</ul></details>"


def details(row: Row) -> str:
    """Return the provenance of a run; of a mean that of each of its runs, in a line."""
    first = row.runs[0]
    if len(row.runs) == 1:
        facts = _facts(first)
    else:
        facts = [(run.name.rpartition("/")[2], _line(run)) for run in row.runs]
    title = first.name if len(row.runs) == 1 else first.name.rpartition("/")[0]
    cells = "".join(
        f"<tr><td style='{_LABEL}'>{escape(name)}</td><td>{escape(text)}</td></tr>"
        for name, text in facts
    )
    return (
        f"<div style='{_CARD}'><b>{escape(row.groups['estimator'])}</b>, seed "
        f"{escape(row.groups['seed'])}<br>{escape(title)}<table>{cells}</table>"
        f"<details><summary>config.yaml</summary><pre style='{_CODE}'>{escape(first.text)}</pre>"
        "</details></div>"
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Return what `run.json` says of code, versions, hardware and times."""
    info = run.record.info
    code, jax = info.get("code") or {}, info.get("jax") or {}
    changed = {x: value for x, value in jax.items() if value != JAX_DEFAULTS.get(x, "")}
    facts = {
        "status": ": ".join([info["status"], *([info["message"]] if "message" in info else [])]),
        "commit": _commit(code),
        "sum of the code": code.get("sum"),
        "versions": _listed(info.get("versions") or {}),
        "hardware": _listed(info.get("hardware") or {}),
        "settings of JAX": _listed(changed) or "JAX's own",
        "written": f"{info.get('started', '?')} to {info.get('written', '?')}",
        "seconds": f"{info['wall_seconds']:.3g} in all, {info.get('compile_seconds', 0):.3g} of "
        "them to compile",
        "resumed at steps": ", ".join(map(str, info["resumed_at"])) or "never",
    }
    return [(name, str(text)) for name, text in facts.items() if text]


def _line(run: Run) -> str:
    info = run.record.info
    device = (info.get("hardware") or {}).get("device_kind", "")
    parts = (info["status"], _commit(info.get("code") or {}), device)
    return ", ".join(part for part in parts if part)


def _commit(code: Mapping[str, Any]) -> str:
    commit = (code.get("commit") or "unknown")[:10]
    return f"{commit}, with uncommitted changes" if code.get("dirty") else commit


def _listed(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items() if value is not None)
