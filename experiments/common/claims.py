"""The claims of the paper beside our findings on a CPU and on a GPU, and the table of findings.

`findings.csv` of a folder has a row for each finding of its experiments. The report of another
folder reads it for the column of the other kind of device.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common import machines, tables
from experiments.common.paper_facts import FACTS, Finding, not_found
from experiments.common.verdicts import ABSENT, UNCHECKED, VERDICTS, Estimate
from fwdgrad.records import write_table

TABLE = "findings.csv"
DEVICES = ("cpu", "gpu")
# Folders beside a report's whose findings are its other column, the first that there is.
_OTHERS = {"cpu": ("paper",), "gpu": ("gpu", "h200")}
_ESTIMATE: tables.Columns = {
    "value": tables.gaps, "low": tables.gaps, "high": tables.gaps, "n": int, "of": str,
    "confidence": float, "unreached": int,
}  # fmt: skip
_COLUMNS: tables.Columns = {
    "claim": str, "figure": str, "quantity": str, "paper": str, "device": str, "hardware": str,
    **_ESTIMATE, **{f"low_rank_{name}": kind for name, kind in _ESTIMATE.items()},
    "verdict": str, "why": str, "table": str, "commit": str,
}  # fmt: skip
_NOTHING = Estimate(math.nan, math.nan, math.nan, 0, "", 0.0)


class Sourced(NamedTuple):
    """A finding and its source.

    Attributes:
      finding: on a claim.
      device: "cpu" or "gpu".
      hardware: the name of the device.
      table: the experiment whose tables have our number.
      commit: of the code that made the table; several if several made it. A + after it: with
        uncommitted changes.
    """

    finding: Finding
    device: str
    hardware: str
    table: str
    commit: str


def sourced(
    findings: Mapping[str, Iterable[Finding]], information: Mapping[str, Mapping[str, Any]]
) -> list[Sourced]:
    """Return findings with their sources, one for each claim.

    Args:
      findings: experiment -> its findings. Of several on one claim the last one stands.
      information: experiment -> the content of its JSON file, with `provenance`, and
        `findings_of` if that of the findings is another.
    """
    found = {}
    for table, of_table in findings.items():
        about = information.get(table, {})
        sources = about.get("findings_of", about.get("provenance", ()))
        commits = ", ".join(dict.fromkeys(commit_of(source) for source in sources))
        device, name = machines.device(sources[0]) if sources else ("cpu", "unknown")
        for finding in of_table:
            found[finding.key] = Sourced(finding, device, name, table, commits)
    return list(found.values())


def commit_of(source: Mapping[str, Any]) -> str:
    """Return the short commit of a source, with a + if it had uncommitted changes."""
    code = source["code"]
    return (code["commit"] or "unknown")[:7] + ("+" if code["dirty"] else "")


def write(folder: Path, found: Iterable[Sourced]) -> None:
    """Write the table of findings of a folder; without findings there is none."""
    rows = []
    for finding, *source, table, commit in found:
        fact = FACTS[finding.key]
        numbers = [x or _NOTHING for x in (finding.ours, finding.low_rank)]
        rows.append((
            finding.key, fact.where, fact.quantity, fact.value, *source, *numbers[0], *numbers[1],
            finding.verdict, finding.why, table, commit,
        ))  # fmt: skip
    if rows:
        write_table(folder / TABLE, _COLUMNS, rows)
    else:
        (folder / TABLE).unlink(missing_ok=True)


def read(folder: Path) -> list[Sourced]:
    """Read the table of findings of a folder; claims that are no more are left out."""
    found, n = [], len(Estimate._fields)
    for row in tables.read(folder / TABLE, _COLUMNS).itertuples(index=False):
        key, _, _, _, device, hardware, *rest = row
        ours, low_rank = Estimate(*rest[:n]), Estimate(*rest[n : 2 * n])
        verdict, why, table, commit = rest[2 * n :]
        if key in FACTS:
            known, other = (x if x.n else None for x in (ours, low_rank))
            finding = Finding(key, known, other, verdict, why)
            found.append(Sourced(finding, device, hardware, table, commit))
    return found


class Claim(NamedTuple):
    """A claim of the paper with our findings.

    Attributes:
      key: of `FACTS`.
      on: device -> the finding on it, and its source; without the device if there is none.
    """

    key: str
    on: Mapping[str, Sourced]

    def finding(self, device: str) -> Finding:
        """Return the finding on a device."""
        return self.on[device].finding if device in self.on else not_found(self.key)


def claims(folder: Path, own: Sequence[Sourced]) -> list[Claim]:
    """Return every claim with a folder's own findings, and with those of folders beside it.

    Args:
      folder: of the report.
      own: its findings.
    """
    found: dict[str, dict[str, Sourced]] = {key: {} for key in FACTS}
    devices = Counter(x.device for x in own)  # one of them is that of nearly all
    mine = [device for device, _ in devices.most_common(1)]
    others = [
        read(other) for device in DEVICES if device not in mine if (other := _other(folder, device))
    ]
    for x in [x for of_folder in others for x in of_folder] + list(own):
        found[x.finding.key][x.device] = x
    return [Claim(key, on) for key, on in found.items()]


def _other(folder: Path, device: str) -> Path | None:
    beside = [folder.parent / name for name in _OTHERS[device]]
    return next((x for x in beside if x != folder and (x / TABLE).exists()), None)


def tally(found: Iterable[Claim]) -> list[str]:
    """Return the number of claims of each verdict, in Markdown."""
    found = list(found)
    verdicts = {device: [claim.finding(device).verdict for claim in found] for device in DEVICES}
    rows = [
        (verdict, *(verdicts[device].count(verdict) for device in DEVICES)) for verdict in VERDICTS
    ]
    return tables.markdown(("verdict", "CPU", "GPU"), rows)


def is_open(claim: Claim) -> bool:
    """Return whether a claim has no verdict on any device, so that it needs no row of its own."""
    return {claim.finding(device).verdict for device in DEVICES} <= {UNCHECKED, ABSENT}
