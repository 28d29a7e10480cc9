"""The report of a preset: its README, with every section, and where the numbers come from."""

from collections.abc import Mapping
from pathlib import Path

from fwdgrad.work.files import atomic_write
from fwdgrad.work.records import read_json


def write(
    folder: Path, preset: str, sections: Mapping[str, str], failures: Mapping[str, str]
) -> Path:
    """Writes `folder`/README.md and returns its path.

    Args:
      folder: the results of the preset.
      preset: its name.
      sections: experiment -> its section in Markdown, in the order of the report.
      failures: experiment -> why it has no new results.
    """
    path = folder / "README.md"
    parts = [
        f"# Results of the preset `{preset}`",
        f"Made by `python -m experiments.reproduce preset={preset}`; not edited by hand.",
        *(f"**{name} failed:** {reason}" for name, reason in failures.items()),
        *sections.values(),
        _provenance({name: read_json(folder / f"{name}.json")["provenance"] for name in sections}),
    ]
    with atomic_write(path) as file:
        file.write("\n\n".join(parts) + "\n")
    return path


def _provenance(sources: Mapping[str, list[dict]]) -> str:
    lines = ["## Where the numbers come from", ""]
    for name, entries in sources.items():
        for source in entries:
            code, hardware = source["code"], source["hardware"]
            commit = code["commit"] or "unknown"
            changed = " with uncommitted changes" if code["dirty"] else ""
            versions = ", ".join(f"{k} {v}" for k, v in source["versions"].items() if v)
            lines.append(
                f"- {name}: commit {commit}{changed}; {hardware['cpu']}, "
                f"{hardware['cpu_cores']} cores, {hardware['num_devices']} device of kind "
                f"{hardware['device_kind']}, {hardware['system']}; {versions}."
            )
    return "\n".join(lines)
