"""Draw `docs/house.svg`, the packages and their imports: python docs/draw_house.py

The imports are read from the code. A package stands one floor below the lowest package that imports
it. An arrow is an import; an import that a chain of arrows implies is left out. The table `BOXES`
has a row for each package: where it stands from left to right, and its description.
"""

import ast
import graphlib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Package -> (left and right edge in percent of the width, description).
BOXES = {
    "experiments": (0, 100, "the commands train, compare, reproduce and dashboard"),
    "experiments.paper": (0, 19, "the paper's figures"),
    "experiments.races": (20, 39, "accuracy in equal time"),
    "experiments.quality": (40, 59, "bias, variance"),
    "experiments.modes": (60, 79, "both modes, Jacobians"),
    "experiments.cost": (80, 100, "time and memory"),
    "experiments.common": (0, 100, "configs, runs, curves, tables, the paper's facts, the report"),
    "fwdgrad.measurement": (0, 64, "time, memory and operations of a training step"),
    "fwdgrad.problems": (66, 82, "data, models, losses"),
    "fwdgrad.optax": (84, 100, "in a chain of optax"),
    "fwdgrad.training": (0, 64, "the loop, its steps, clipping, schedules"),
    "fwdgrad.records": (0, 28, "files of a run, locks"),
    "fwdgrad": (30, 100, "the front door: the list of public names"),
    "fwdgrad.diagnostics": (30, 54, "explain, compare, check"),
    "fwdgrad.modes": (73, 100, "chains of layers, Jacobians"),
    "fwdgrad.recurrent": (56, 71, "online gradients"),
    "fwdgrad.estimators": (30, 54, "value and gradient, aggregation"),
    "fwdgrad.perturbation": (30, 54, "weights, activities"),
    "fwdgrad.propagation": (30, 71, "the structured JVP and its rules"),
    "fwdgrad.tangents": (30, 71, "forms and distributions"),
    "fwdgrad.util": (0, 100, "pytrees, validation, JAX's internals by version"),
}
CAPTION = (
    "An arrow is an import. An import that a chain of arrows implies is left out.",
    'Blue needs JAX alone; green needs the extra "experiments"; orange is not installed.',
)
WIDTH, BOX, FLOOR, MARGIN = 900, 50, 76, 16


def imports() -> dict[str, set[str]]:
    """Return package -> the packages that its files import."""
    found: dict[str, set[str]] = {}
    for top in ("fwdgrad", "experiments"):
        for path in sorted((ROOT / top).rglob("*.py")):
            package = _package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            found.setdefault(package, set()).update(_imported(path) - {package})
    return found


def _imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {_package_of(name) for name in names if name.startswith(("fwdgrad", "experiments"))}


def _package_of(name: str) -> str:
    """Return the package of a module or of a name in it.

    Raises:
      ValueError: the package has no box.
    """
    parts = name.split(".")
    if len(parts) > 1 and (ROOT / parts[0] / parts[1]).is_dir():
        package = ".".join(parts[:2])
    else:
        package = parts[0]
    if package not in BOXES:
        raise ValueError(f"{package} has no box. Give it a row of BOXES in docs/draw_house.py.")
    return package


def arrows(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Return the imports that no chain of other imports implies: the transitive reduction.

    Raises:
      graphlib.CycleError: packages import each other in a circle.
    """
    below: dict[str, set[str]] = {}
    for package in graphlib.TopologicalSorter(edges).static_order():
        direct = edges[package]
        below[package] = direct.union(*(below[other] for other in direct))
    return sorted(
        (package, other)
        for package, direct in edges.items()
        for other in direct
        if not any(other in below[between] for between in direct)
    )


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """Return package -> floors from the top: one below the lowest package that imports it."""
    order = [*graphlib.TopologicalSorter(edges).static_order()]
    floor = dict.fromkeys(edges, 0)
    for package in reversed(order):
        for other in edges[package]:
            floor[other] = max(floor[other], floor[package] + 1)
    # Nothing imports a command. So it has the floor above the packages that it imports.
    for package in set(edges).difference(*edges.values()):
        floor[package] = min(floor[other] for other in edges[package]) - 1
    return floor


def picture() -> str:
    """Return the picture as SVG, the same text for the same imports."""
    edges = imports()
    floor = floors(edges)
    height = FLOOR * max(floor.values()) + BOX + 2 * MARGIN + 19 * len(CAPTION)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">',
        "<title>The packages of fwdgrad, and which imports which</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for package, other in arrows(edges):
        x = _x(_middle_of_overlap(package, other))
        start, end = _y(floor[package]) + BOX, _y(floor[other])
        parts.append(
            f'<path d="M{x},{start} V{end - 1}" stroke="#555" stroke-width="1.5" fill="none" '
            f'marker-end="url(#arrow)"><title>{package} imports {other}</title></path>'
        )
    for package, (left, right, description) in BOXES.items():
        x, y, middle = _x(left), _y(floor[package]), _x((left + right) / 2)
        fill, line = _colours(package)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_x(right) - x:g}" height="{BOX}" rx="5" fill="{fill}" '
            f'stroke="{line}"/>'
        )
        bold, size = 'font-weight="bold" text-anchor="middle"', 13 if right - left < 25 else 15
        parts.append(_text(middle, y + 21, package, bold, size))
        parts.append(_text(middle, y + 39, description, 'text-anchor="middle"', 13))
    for line, caption in enumerate(reversed(CAPTION)):
        parts.append(_text(MARGIN, height - 8 - 19 * line, caption, 'fill="#555"', 13))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, style: str, size: int) -> str:
    return f'<text x="{x:g}" y="{y}" font-size="{size}" {style}>{escape(text)}</text>'


def _middle_of_overlap(package: str, other: str) -> float:
    """Return where an arrow between two boxes goes straight down, in percent.

    Raises:
      ValueError: the boxes do not lie above each other.
    """
    left = max(BOXES[package][0], BOXES[other][0])
    right = min(BOXES[package][1], BOXES[other][1])
    if left >= right:
        raise ValueError(f"{package} imports {other}: move their BOXES above each other.")
    return (left + right) / 2


def _colours(package: str) -> tuple[str, str]:
    if package.startswith("experiments"):
        return "#fdf0e0", "#d9a05b"
    if package.split(".")[-1] in ("measurement", "training", "records", "problems", "optax"):
        return "#e8f3e8", "#7fae7f"
    return "#e6eef8", "#7d9cc6"


def _x(percent: float) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * percent / 100


def _y(floor: int) -> int:
    return MARGIN + FLOOR * floor


if __name__ == "__main__":
    (ROOT / "docs" / "house.svg").write_text(picture(), encoding="utf-8")
