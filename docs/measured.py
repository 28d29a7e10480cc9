"""Bring the measured numbers of README.md and docs/*.md up to date: python -m docs.measured

Each measured number is followed by a comment that names its table, its row and its column:

    0.58 [0.56, 0.60] <!-- results/paper/step_cost.csv model=mlp estimator=low_rank : ratio -->

The row is the one whose cells equal those that are named; the interval is that of the columns
`ratio_low` and `ratio_high`, or, if there are none, of `low` and `high`. `: seconds in ms` converts
(ms, µs, MiB, GiB, %). The number keeps its significant digits; a `?` becomes three of them.

The rows between `<!-- claims -->` and `<!-- end of claims -->` are made of `CLAIMS` and of the
findings in results/paper/ (CPU) and results/gpu/ or results/h200/ (GPU).

A claim is a number with a decimal point, or one with a unit (%, ms, s, MiB, ×, times, points, …).
It has such a comment, or one of these, or is an error (`unsourced`):

- `<!-- paper: key -->`, a number of `experiments/common/paper_facts.py`;
- `<!-- cited: work -->`, once in a paragraph, list item or row of a table whose numbers are of a
  work that docs/related_work.md names;
- `<!-- setting -->`, a number that somebody chose, such as a rate.

No claims are numbers in code, formulas (indented by four), links and headings; versions (JAX
0.10.2) and numbers of arXiv; learning rates, momentum and decay by name; and the confidence of an
interval.
"""

import csv
import math
import re
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The rows of the README's table: text, key of a finding, and whether it is of low-rank tangents.
CLAIMS = (
    ("time of a step: MLP", "mlp.R_ratio", False),
    ("… CNN", "cnn.R_ratio", False),
    ("… MLP, our low-rank tangents", "mlp.R_ratio", True),
    (
        "final loss, both at rate 2e-4 for 20,000 iterations: MLP",
        *("mlp_2e-4.loss_ratio", False),
    ),
    ("the same runs: time to reach backprop's lowest loss", "mlp_2e-4.T_ratio", False),
    ("… our low-rank tangents", "mlp_2e-4.T_ratio", True),
    (
        "each at its own best rate, *backprop's* final loss over the forward gradient's: MLP",
        *("replications.backprop_wins", False),
    ),
)
_CLAIMS = re.compile(r"(<!-- claims -->\n).*?(<!-- end of claims -->)", re.DOTALL)
UNITS = {"ms": 1e3, "µs": 1e6, "MiB": 2**-20, "GiB": 2**-30, "%": 100.0}

_DIGITS = r"(?:\d[\d,]*(?:\.\d+)?(?:e[-−]?\d+)?)"
_NUMBER = rf"[-−]?(?:{_DIGITS}|\?)"
# A number, perhaps an interval, then a unit or the end of bold type, then the comment.
_SHOWN = rf"({_NUMBER})( \[{_NUMBER}, {_NUMBER}\])?([^\d<>?|]{{0,12}}?\s?)<!-- "
_MEASURED = re.compile(_SHOWN + r"(results/\S+\.csv .*?) -->", re.DOTALL)
_OF_THE_PAPER = re.compile(_SHOWN + r"paper: (\S+) -->")
_SETTING = re.compile(_SHOWN + r"(setting) -->")
_CITED = re.compile(r"<!-- cited: (.*?) -->")
_CLAIM = re.compile(
    r"(?<![\w.,^₀-₉])(?:\d[\d,]*\.\d+(?:e[-−]?\d+)?|\d+e[-−]?\d+"
    r"|\d[\d,]*\s?(?:%|×(?!\s*\d)|[µm]?s\b|[MGk]i?B\b|times\b|points?\b|seconds?\b|minutes?\b|hours?\b"
    r"|-?fold\b))"
)
_NO_CLAIM = re.compile(
    r"(?:JAX|Python|[Vv]ersion)\s+\d+(?:\.\d+)+(?:(?:,| and| to| or)\s+\d+(?:\.\d+)+)*"
    r"|arXiv\s+\d+\.\d+"
    r"|(?:rates?|momentum|decay|η₀ =)\s(?:of\s)?(?:\d[\d.e−-]*(?:, | and | to | or )?)+"
    r"|9[05]\s?%(?=\s(?:confidence\s)?intervals?)"
)


class UnknownSource(ValueError):
    """A comment names a table, row, column or fact that is not there."""


def updated(text: str, root: Path = ROOT) -> str:
    """Return a page with its measured numbers as their tables have them.

    Raises:
      UnknownSource: a comment names a missing table, row, column or interval.
    """

    def number(match: re.Match[str]) -> str:
        shown, interval, unit, source = match.groups()
        value, low, high = _cell(source, root)
        new = _formatted(shown, value)
        if interval:
            if math.isnan(low) or math.isnan(high):
                raise UnknownSource(f"{source}: no interval. Show the number alone.")
            decimals = len(new.partition(".")[2]) if "e" not in new else None
            ends = [
                f"{x:,.{decimals}f}" if decimals is not None else _formatted(new, x)
                for x in (low, high)
            ]
            new += f" [{', '.join(ends)}]"
        return f"{new}{unit}<!-- {source} -->"

    text = _CLAIMS.sub(lambda match: match[1] + claims_table(root) + match[2], text)
    return _MEASURED.sub(number, text)


def unsourced(text: str) -> list[str]:
    """Return the claims of a page without a source, each with the words around it.

    >>> unsourced("A step takes 0.58 of backprop's time with JAX 0.10.2, at a rate of 0.1.")
    ["takes 0.58 of backprop's"]
    """
    facts, works = _facts(), (ROOT / "docs" / "related_work.md").read_text(encoding="utf-8")
    for *_, key in _OF_THE_PAPER.findall(text):
        if key not in facts:
            raise UnknownSource(f"paper: {key}: no such key of FACTS in paper_facts.py.")
    for work in _CITED.findall(text):
        if work not in works:
            raise UnknownSource(f"cited: {work}: docs/related_work.md does not name it.")
    found = []
    for block in _blocks(_without_code(_CLAIMS.sub("", text))):
        for shown, interval, _, key in _OF_THE_PAPER.findall(block):
            numbers = re.findall(_DIGITS, facts[key])
            if interval or shown not in numbers:
                found.append(f"{shown}{interval} is not the paper's {facts[key]} ({key})")
        if _CITED.search(block):
            continue
        for pattern in (_MEASURED, _OF_THE_PAPER, _SETTING):
            block = pattern.sub(" ", block)
        block = _NO_CLAIM.sub(" ", block)
        found += [_context(block, claim) for claim in _CLAIM.finditer(block)]
    return found


def claims_table(root: Path = ROOT) -> str:
    """Return the table of `CLAIMS`: the paper's number, ours on each device, and the verdicts."""
    from experiments.common import claims  # imports JAX: only where it is needed

    folder = root / "results" / "paper"
    own = claims.read(folder) if (folder / claims.TABLE).exists() else []
    found = claims.claims(folder, own)
    of_key = {claim.key: claim for claim in found}
    rows = []
    for text, key, low_rank in CLAIMS:
        numbers, verdicts, sides = [], [], []
        for device in claims.DEVICES:
            finding = of_key[key].finding(device)
            ours = finding.low_rank if low_rank else finding.ours
            numbers.append("–" if ours is None else ours.sentence)
            if ours is not None:
                verdicts.append((device.upper(), finding.verdict))
                sides.append((device.upper(), _side(ours.low, ours.high)))
        said = [_of_both(sides)] if low_rank else [_of_both(verdicts), _of_both(sides)]
        paper = "–" if low_rank else _facts()[key]
        rows.append((text, paper, *numbers, "; ".join(filter(None, said))))
    names = [
        ", ".join(sorted({c.on[d].hardware for c in found if d in c.on})) for d in claims.DEVICES
    ]
    devices = [f"{d.upper()}{n and f' ({n})'}" for d, n in zip(claims.DEVICES, names, strict=True)]
    header = ("forward gradient over backprop", "published", *devices, "verdict")
    lines = (header, ("---",) * len(header), *rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def _of_both(said: Sequence[tuple[str, str]]) -> str:
    """Join the words on each device; name them once if both devices have the same.

    >>> _of_both([("CPU", "above 1"), ("GPU", "above 1")]), _of_both([("CPU", "above 1")])
    ('above 1', 'above 1 (CPU)')
    >>> _of_both([("CPU", "above 1"), ("GPU", "below 1")])
    'above 1 (CPU), below 1 (GPU)'
    """
    if len(said) == 2 and said[0][1] == said[1][1]:
        return said[0][1]
    return ", ".join(f"{words} ({device})" for device, words in said)


def _side(low: float, high: float) -> str:
    return "below 1" if high < 1 else "above 1" if low > 1 else "not told from 1"


def pages() -> list[Path]:
    """Return README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _cell(source: str, root: Path) -> tuple[float, float, float]:
    """Return a number of a table with the ends of its interval, nan without one."""
    where, _, column = " ".join(source.split()).rpartition(" : ")
    path, *conditions = shlex.split(where)
    column, _, unit = column.partition(" in ")
    scale = UNITS[unit] if unit else 1.0
    wanted = dict(condition.split("=", 1) for condition in conditions)
    try:
        table = _table(root / path)
    except OSError as error:
        raise UnknownSource(f"{source}: there is no {path}.") from error
    rows = [row for row in table if all(_same(row.get(k), v) for k, v in wanted.items())]
    if len(rows) != 1:
        raise UnknownSource(f"{source}: {len(rows)} rows of {path} are like that, not one.")
    row = rows[0]
    if not row.get(column):
        raise UnknownSource(f"{source}: no {column!r} in that row. It has {', '.join(row)}.")
    stem = column.removesuffix("value")
    own = stem == column and f"{column}_low" in row
    ends = [f"{column}_{end}" if own else end for end in ("low", "high")]
    if stem not in (column, ""):
        ends = [f"{stem}{end}" for end in ("low", "high")]
    low, high = (float(row.get(end) or "nan") for end in ends)
    return float(row[column]) * scale, low * scale, high * scale


@cache
def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _same(cell: str | None, wanted: str) -> bool:
    """Return whether a cell has a text, or the same number.

    >>> _same("64.0", "64"), _same("mlp", "cnn")
    (True, False)
    """
    if cell is None or cell == wanted:
        return cell == wanted
    try:
        return float(cell) == float(wanted)
    except ValueError:
        return False


def _formatted(shown: str, value: float) -> str:
    """Return a number with as many significant digits as the one that stands there.

    >>> _formatted("?", 0.58193), _formatted("2.4", 12.26), _formatted("100", 1234.5)
    ('0.582', '12', '1,234')
    >>> _formatted("5.8e-5", 6.149e-5), _formatted("0.580", 1.0)
    ('6.1e-5', '1.00')
    """
    mantissa = re.sub(r"e.*|[-−,.]", "", shown).lstrip("0")
    digits = 3 if shown == "?" or not mantissa else len(mantissa)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    text = f"{value:.{digits - 1}e}"
    exponent = int(text.partition("e")[2])
    if -4 <= exponent < 9:
        return f"{float(text) if exponent < digits else value:,.{max(0, digits - 1 - exponent)}f}"
    return text.partition("e")[0] + f"e{exponent}"


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", " ", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"(?<=\n\n)(?: {4}.*\n|\n)+", "\n", text)  # formulas
    text = re.sub(r"^#.*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`]*`|<http[^>]*>", " ", text)


def _blocks(text: str) -> list[str]:
    """Return the paragraphs, list items and table rows of a page."""
    return re.split(r"\n\s*\n|\n(?=\s*(?:[-*|]|\d+\.)\s)|\n(?=\|)", text)


def _context(block: str, claim: re.Match[str]) -> str:
    before = block[: claim.start()].split()[-1:]
    after = block[claim.end() :].split()[:2]
    return " ".join([*before, claim[0], *after])


@cache
def _facts() -> dict[str, str]:
    from experiments.common.paper_facts import FACTS  # imports JAX: only where it is needed

    return {key: fact.value for key, fact in FACTS.items()}


def main() -> None:
    """Update all pages, and name claims that have no source."""
    bad = []
    for path in pages():
        text = path.read_text(encoding="utf-8")
        new = updated(text)
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: numbers updated")
        bad += [f"{path.relative_to(ROOT)}: {claim}" for claim in unsourced(new)]
    if bad:
        sys.exit("no source:\n" + "\n".join(bad))


if __name__ == "__main__":
    main()
