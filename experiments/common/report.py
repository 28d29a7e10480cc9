"""The report of a preset, its README: every section, and the provenance of the numbers."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.common import tables
from experiments.common.paper_facts import FACTS, TOLERANCE, WIDEST, Finding, not_found
from fwdgrad.records import JAX_DEFAULTS, atomic_write, read_json

_SHOWN = (
    "figure", "quantity", "paper", "mark", "ours, the paper's estimator", "ours, low-rank",
    "verdict", "why",
)  # fmt: skip


def write(
    folder: Path,
    preset: str,
    sections: Mapping[str, str],
    findings: Iterable[Finding],
    failures: Mapping[str, str],
    notes: Iterable[str] = (),
) -> Path:
    """Write `folder`/README.md and return its path.

    Args:
      folder: the results of the preset.
      preset: the name of the preset.
      sections: experiment -> section in Markdown, in the order of the report.
      findings: comparisons with the paper's numbers.
      failures: experiment -> the reason why it has no new results.
      notes: sentences on what is missing, such as jobs that a budget left out.
    """
    path = folder / "README.md"
    parts = [
        f"# Results of the preset `{preset}`",
        f"Made by `python -m experiments.reproduce preset={preset}`; not edited by hand.",
        *(f"**{name} failed:** {reason}" for name, reason in failures.items()),
        *notes,
        _numbers_of_the_paper(list(findings)),
        *sections.values(),
        _provenance({name: x for name in sections if (x := _information(folder, name))}),
    ]
    with atomic_write(path) as file:
        file.write("\n\n".join(parts) + "\n")
    return path


def _information(folder: Path, name: str) -> dict[str, Any]:
    """Return an experiment's information; {} if it was killed before it wrote any."""
    path = folder / f"{name}.json"
    return read_json(path) if path.exists() else {}


def _numbers_of_the_paper(findings: list[Finding]) -> str:
    of_fact = {finding.key: finding for finding in findings}
    rows = []
    for key, fact in FACTS.items():
        found = of_fact.get(key) or not_found(key)
        known = (fact.where, fact.quantity, fact.value, fact.mark)
        rows.append((*known, found.ours, found.low_rank, found.verdict, found.why))
    lines = [
        "## The numbers of the paper",
        "",
        "Mark: F, read off the paper's own figure or caption; Q, quoted or used by several "
        "independent replications; U, remembered, with no source found to confirm it. Ours: means "
        "over seeds (n of them), or medians over n timed turns, with 95 % intervals; times and "
        "their ratios are of this machine. The verdict is of the paper's own estimator (dense "
        f"normal tangents, or backprop), and allows for {TOLERANCE:.0%}, since the paper's numbers "
        "are read off plots. A number is contradicted if all of our interval is outside of that. "
        f"It is reproduced if our interval reaches at most {WIDEST:.0%} of its middle to either "
        "side, or lies in a range of the paper's. Otherwise, as with another setting, it cannot be "
        "checked. A one-sided claim ('above 1') has no tolerance, and all of our interval must be "
        "on its side. Low-rank tangents are beside it.",
        "",
        *tables.markdown(_SHOWN, rows),
    ]
    return "\n".join(lines)


def _provenance(information: Mapping[str, dict[str, Any]]) -> str:
    lines = [
        "## Where the numbers come from",
        "",
        "The exact versions of all packages are pinned in `constraints.txt`.",
        "",
    ]
    for name, of_experiment in information.items():
        hours, rest = divmod(round(of_experiment["wall_seconds"]), 3600)
        lines.append(f"- {name}, {hours}:{rest // 60:02}:{rest % 60:02} h of wall time")
        machines = {str(source["hardware"]) for source in of_experiment["provenance"]}
        if len(machines) > 1:
            lines[-1] += "; **on several machines, so its times cannot be compared**"
        for source in of_experiment["provenance"]:
            code, hardware = source["code"], source["hardware"]
            commit = code["commit"] or "unknown"
            changed = " with uncommitted changes" if code["dirty"] else ""
            versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items() if v)
            lines.append(
                f"  - commit {commit}{changed}; {hardware['cpu']}, "
                f"{hardware['cpu_cores']} cores, {hardware['num_devices']} device of kind "
                f"{hardware['device_kind']}, {hardware['system']}; {versions}"
                f"{_jax_settings(source.get('jax', {}))}."
            )
    return "\n".join(lines)


def _jax_settings(settings: Mapping[str, Any]) -> str:
    """Return the settings of JAX that differ from its defaults and may change numbers."""
    changed = (f"{k} {v}" for k, v in settings.items() if JAX_DEFAULTS.get(k, "") != v)
    return "".join(f"; {setting}" for setting in changed)
