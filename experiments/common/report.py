"""The report of a preset, its README: the verdicts, a row a claim, a section a figure, provenance.

What the paper lacks is in files of its own beside the README.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common import claims, tables
from experiments.common.claims import Claim
from experiments.common.headlines import headlines
from experiments.common.paper_facts import FACTS, Finding
from experiments.common.verdicts import ABSENT, NARROW_PLOT, PLOT, TIMES, UNCHECKED
from fwdgrad.records import JAX_DEFAULTS, atomic_write, read_json

# File -> its title, and the experiments whose sections are in it; the others' are in the README.
FILES = {
    "laboratory.md": (
        "The laboratory: quality and cost of each estimator",
        ("estimator_quality", "scaling_laws", "perturbed_weights"),
    ),
    "small_rates.md": ("Why the forward gradient is faster at small rates", ("small_rates",)),
    "races.md": ("Races: test error for equal operations", ("accuracy_race", "cnn_race")),
    "sum_races.md": (
        "Races: test error for equal steps",
        (
            "sum_race",
            "sum_race_long",
            "sum_race_shifted",
            "sum_race_deep",
            "sum_race_cnn",
            "cnn_race_long",
            "optimizer_race",
        ),
    ),
    "modes.md": ("Forward and reverse mode, and other ways to a derivative", ("differentiation",)),
}
MOST_WORDS = 2500  # of the README; the longest sections are then in files of their own
_VERSIONS = ("python", "jax", "jaxlib", "numpy", "optax", "equinox")  # those that compute
_PROTOCOL = (
    " The protocol of a comparison, `configs/protocol.yaml` and its own config, was fixed by the "
    "commit that is named, before its runs."
)
_HEADING = 20  # words of title and command
_PART = "Part of the [report](README.md)."
_SHOWN = (
    "figure", "quantity", "the paper", "CPU", "verdict on this CPU", "GPU", "verdict on this GPU",
    "likely reason",
)  # fmt: skip
_HOW = f"""\
Our numbers are by the paper's own estimator, dense normal tangents, or by backprop. *Reproduced*:
all of our interval lies within a margin around the paper's number (two one-sided tests at 5 %);
*not reproduced*: all of it lies outside. The margin is {100 * PLOT:g} % of a number read off a
plot, {100 * NARROW_PLOT:g} % for losses on the narrow axis at 2e-5, {100 * TIMES:g} % for times and
their ratios (the paper's two timings of one step differ by 12 %), a decade for an order of
magnitude, none for a one-sided claim. Behind each number its interval, and what n counts: over
seeds 90 % (Student's t), over processes 95 %, over timed turns of one process 95 % too, without
what differs between processes. T_f/T_b in iterations is for the paper T_f/T_b over R_f/R_b. F: read
off the paper's figure or caption; Q: quoted by replications; U: remembered, no source found.
Low-rank tangents, sources and commits of each row: [{claims.TABLE}]
({claims.TABLE}).""".replace("]\n(", "](").replace("\n", " ")


def write(
    folder: Path,
    title: str,
    command: str,
    sections: Mapping[str, str],
    findings: Mapping[str, Iterable[Finding]],
    failures: Mapping[str, str],
    notes: Iterable[str] = (),
) -> Path:
    """Write `folder`/README.md and the files beside it, and return its path.

    Args:
      folder: the results of the preset.
      title: of the report.
      command: the command that makes it.
      sections: experiment -> section in Markdown, in the order of the report.
      findings: experiment -> its comparisons with the paper's numbers.
      failures: experiment -> the reason why it has no new results.
      notes: sentences on missing numbers, such as jobs that a budget left out.
    """
    information = {name: _information(folder, name) for name in sections}
    own = claims.sourced(findings, information)
    claims.write(folder, own)
    found = claims.claims(folder, own)
    inside = dict(sections)
    links = []
    for file, (heading, names) in FILES.items():
        if parts := [inside.pop(name) for name in names if name in inside]:
            _write(folder / file, [f"# {heading}", _PART, *parts])
            links.append(f"- [{heading}]({file})")
    above = [
        *(f"**{name} failed:** {reason}" for name, reason in failures.items()),
        *notes,
        "\n".join(headlines(found)),
        "\n".join(claims.tally(found)),
        "## The claims of the paper",
        _HOW,
        "\n".join(_rows(found)),
        *_open(found),
    ]
    below = ["## Beyond the paper", "\n".join(links)] if links else []
    rest = sum(map(count_words, [*above, *below, _provenance(information)]))
    parts = [*above, *_fitted(folder, inside, MOST_WORDS - rest - _HEADING), *below]
    return write_page(folder, title, command, parts, information)


def count_words(text: str) -> int:
    """Return the number of words of a Markdown text: of what has a letter or a digit.

    >>> count_words("| R_f/R_b | 0.5 [0.4, 0.6] |")
    4
    """
    return len(re.findall(r"\S*\w\S*", text))


def _fitted(folder: Path, sections: Mapping[str, str], room: int) -> list[str]:
    """Return sections of at most so many words; long ones are cut, and whole in a file.

    Sections on no figure of the paper are cut first, then the longest.
    """
    fitted, of_figures = dict(sections), "(the paper's"
    for name in sorted(
        sections, key=lambda x: (of_figures in sections[x], -count_words(sections[x]))
    ):
        if sum(map(count_words, fitted.values())) <= room:
            break
        whole = sections[name]
        _write(folder / f"{name}.md", [whole.replace("## ", "# ", 1), _PART])
        beginning = whole.partition("\n|")[0].rstrip()
        fitted[name] = f"{beginning}\n\n[The tables]({name}.md)."
    return list(fitted.values())


def write_page(
    folder: Path,
    title: str,
    command: str,
    parts: Iterable[str],
    information: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write `folder`/README.md with the provenance of its experiments, and return its path.

    Args:
      folder, title, command: as in `write`.
      parts: in Markdown.
      information: experiment -> the content of its JSON file.
    """
    path, made = folder / "README.md", f"Made by `{command}`; not edited by hand."
    _write(path, [f"# {title}", made, *parts, _provenance(information)])
    return path


def _write(path: Path, parts: Sequence[str]) -> None:
    with atomic_write(path) as file:
        file.write("\n\n".join(parts) + "\n")


def _information(folder: Path, name: str) -> dict[str, Any]:
    """Return an experiment's information; {} if it was killed before it wrote any."""
    path = folder / f"{name}.json"
    return read_json(path) if path.exists() else {}


def _rows(found: Iterable[Claim]) -> list[str]:
    """Return the table of the claims on which there is a verdict; a figure is named once."""
    rows, last = [], ""
    for claim in found:
        if claims.is_open(claim):
            continue
        fact, cells = FACTS[claim.key], []
        reasons: dict[str, list[str]] = {}
        for device in claims.DEVICES:
            of_device = claim.finding(device)
            shown = "" if of_device.ours is None else of_device.ours.sentence
            cells += [shown, "–" if of_device.verdict == ABSENT else of_device.verdict]
            if of_device.why:
                reasons.setdefault(of_device.why, []).append(device.upper())
        why = "; ".join(
            text if len(names) == len(claim.on) else f"{', '.join(names)}: {text}"
            for text, names in reasons.items()
        )
        where = "" if fact.where == last else fact.where
        rows.append((where, fact.quantity, f"{fact.value} ({fact.mark})", *cells, why))
        last = fact.where
    return tables.markdown(_SHOWN, rows)


def _open(found: Iterable[Claim]) -> list[str]:
    """Return the claims that cannot be checked, by reason, and those that are not measured."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for claim in filter(claims.is_open, found):
        fact = FACTS[claim.key]
        why = fact.unchecked or next((x.finding.why for x in claim.on.values()), "")
        reason = ", ".join(filter(None, (UNCHECKED if fact.unchecked else ABSENT, why)))
        reasons.setdefault(reason, {}).setdefault(fact.where, []).append(fact.quantity)
    lines = []
    for reason, figures in reasons.items():
        numbers = "; ".join(f"{where}: {', '.join(names)}" for where, names in figures.items())
        lines.append(f"- {reason[0].upper()}{reason[1:]}. {numbers}.")
    return ["\n".join(lines)] if lines else []


def _provenance(information: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the section on code, machines and versions."""
    rows = []
    machines: dict[str, int] = {}
    for name, of_experiment in information.items():
        sources = of_experiment.get("provenance", ())
        seconds = of_experiment.get("wall_seconds")
        numbers = []
        for source in sources:
            machine = _machine(source)
            numbers.append(machines.setdefault(machine, len(machines) + 1))
        commits = dict.fromkeys(map(claims.commit_of, sources))
        protocol = ", ".join(commit[:7] for commit in of_experiment.get("protocol", ()))
        note = of_experiment.get("note", "")
        rows.append((
            name, ", ".join(commits), protocol, _duration(seconds),
            ", ".join(map(str, dict.fromkeys(numbers))), note,
        ))  # fmt: skip
    shown = ("experiment", "commit", "protocol of commit", "time", "machine", "")
    kept = [i for i, name in enumerate(shown) if i < 2 or any(row[i] for row in rows)]
    lines = [
        "## Where the numbers come from",
        "",
        "A + marks a commit with uncommitted changes. Exact versions are pinned in "
        "`constraints.txt`. Another machine or version differs in the last bits, and long "
        "trainings by more than that." + (_PROTOCOL if any(row[2] for row in rows) else ""),
        "",
        *tables.markdown([shown[i] for i in kept], ([row[i] for i in kept] for row in rows)),
        "",
        *(f"- Machine {number}: {machine}." for machine, number in machines.items()),
        *_hosts(information.values()),
    ]
    return "\n".join(lines)


def _hosts(information: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return lines on the processes that times were taken in: caches, threads and load."""
    loads: dict[str, list[float]] = {}
    for of_experiment in information:
        for process in of_experiment.get("processes", ()):
            host = process["host"]
            caches = ", ".join(f"{name} {size}" for name, size in host["caches"].items())
            text = f"{host['cpu']}, {host['threads']} threads; caches {caches or 'unknown'}"
            loads.setdefault(text, []).extend((host["load"] or [math.nan])[:1])
    return [
        f"- {len(of_host)} timed processes: {text}; load average at their start "
        f"{min(of_host):.2g} to {max(of_host):.2g}."
        for text, of_host in loads.items()
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:  # not recorded
        return ""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _machine(source: Mapping[str, Any]) -> str:
    """Return hardware, versions and settings of JAX of a source."""
    hardware, versions = source["hardware"], source["versions"]
    device = "" if hardware.get("device", "cpu") == "cpu" else f"{hardware['device_kind']}, "
    parts = [f"{device}{hardware['cpu']}, {hardware['cpu_cores']} cores"]
    parts += [f"{key} {hardware[key]}" for key in ("caches", "threads") if hardware.get(key)]
    parts += [
        hardware["system"],
        ", ".join(f"{k} {versions[k]}" for k in _VERSIONS if versions.get(k)),
    ]
    return "; ".join(parts) + _jax_settings(source.get("jax", {}))


def _jax_settings(settings: Mapping[str, Any]) -> str:
    """Return the settings of JAX that differ from its defaults and may change numbers."""
    changed = (f"{k} {v}" for k, v in settings.items() if JAX_DEFAULTS.get(k, "") != v)
    return "".join(f"; {setting}" for setting in changed)
