"""MkDocs hooks: pages and files from outside of docs/, links to them, the start page, the gallery.

In the sources all links are those of the repository, so they work in it, too. The site has docs/ at
its top, so `docs/` and one `../` are taken out of them.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_OUTSIDE = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "configs/protocol.yaml",
    "examples/**/*.py",
    "fwdgrad/problems/data/*/README.md",
    *(f"results/*/*.{kind}" for kind in ("csv", "md", "png", "svg")),
)
_SAMPLES = ("quick", "smoke")  # the figures of `paper`, small


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to."""
    for pattern in _OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page with the README or the gallery in its place, and the links of the site."""
    uri = page.file.src_uri
    if uri == "index.md":
        markdown = (ROOT / "README.md").read_text(encoding="utf-8")
    if uri == "gallery.md":
        markdown = markdown.replace("<!-- gallery -->", _gallery())
    inside = uri != "index.md" and (ROOT / "docs" / uri).exists()
    pattern = r"\]\(\.\./" if inside else r"\]\(((?:\.\./)*)docs/"
    return re.sub(pattern, "](" if inside else r"](\1", markdown)


def _gallery() -> str:
    parts = []
    for folder in sorted(path for path in (ROOT / "results").iterdir() if path.is_dir()):
        figures = [] if folder.name in _SAMPLES else sorted(folder.glob("*.png"))
        if figures:
            where = f"../results/{folder.name}"
            parts.append(f"## `{folder.name}`\n\n[The report]({where}/README.md)")
        for figure in figures:
            title = figure.stem.replace("_", " ")
            parts.append(f"### {title.capitalize()}\n\n![{title}]({where}/{figure.name})")
    return "\n\n".join(parts)
