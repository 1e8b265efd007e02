"""The course map on the first page, made from the notebooks, so that it lists those that exist."""

import json
import re
from pathlib import Path, PurePosixPath

from site_links import relink
from site_sources import DOCS, lessons, write
from sphinx.application import Sphinx

ROWS = ("Afterwards you can", "Papers")  # of the table at the top of a lesson


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", lambda app, config: write(DOCS / "_course.md", course_map().encode()))
    return {"parallel_read_safe": True}


def course_map() -> str:
    """For each lesson its question, what it is about, what one can do afterwards, and the papers."""
    return "\n\n".join(describe(path) for path in lessons()) + "\n"


def describe(path: Path) -> str:
    """From the first cells of a lesson: the title, the first paragraph, rows of the table."""
    texts = markdown(path)
    title, about = re.match(r"#\s+(.+?)\s*\n+(.+?)(?:\n\n|$)", texts[0], re.DOTALL).groups()
    parts = [f"### [{title}](notebooks/{path.name})", about]
    for row in ROWS:
        found = re.search(rf"^\| \*\*{row}\*\* \| (.+?) \|$", "\n".join(texts[:3]), re.MULTILINE)
        parts += [f"*{row}:* {found[1]}"] if found else []
    return parts[0] + "\n\n" + relink("\n\n".join(parts[1:]), PurePosixPath("notebooks"), "index")


def markdown(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
