"""What the site needs beside docs/: the README as its first page, and names in place of links to what is no page."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOME = "index.md"
STYLE = """
.md-grid { max-width: 78rem; }
.md-typeset td code { white-space: nowrap; }
.md-typeset table:not([class]) th { min-width: 3rem; }
"""
"""Room for tables, whose names are not broken in two."""


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, HOME, content=readme.replace("](docs/", "](")))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """[CHANGELOG](../CHANGELOG.md) is the name of a file of the checkout here."""
    place = ROOT if page.file.src_uri == HOME else ROOT / "docs"
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#:]+)\)", lambda found: _link(found, place), markdown)


def _link(found: re.Match[str], place: Path) -> str:
    label, target = found.groups()
    outside = target.startswith("../") or (place == ROOT and not (ROOT / "docs" / target).exists())
    return f"`{label}`" if outside and (place / target).exists() else found[0]
