"""What the site copies from the repository: the notebooks, and pages that stand beside the code.

It is written into folders of docs/ before Sphinx looks for pages, and git ignores it.
"""

from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
PAGES = {  # page in docs/more: its origin. Those that exist are copied
    "start": "README.md",
    "contributing": "CONTRIBUTING.md",
    "homework": "homework/README.md",
    "data": "data/README.md",
    "licences": "data/LICENSES.md",
    "bench": "bench/README.md",
}


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", copy)
    return {"parallel_read_safe": True}


def copy(app: Sphinx, config) -> None:
    fill(
        "notebooks", {str(path.relative_to(ROOT / "notebooks")): path.read_bytes() for path in lessons() + solutions()}
    )
    exist = {name: ROOT / path for name, path in PAGES.items() if (ROOT / path).exists()}
    fill("more", {f"{name}.md": path.read_bytes() for name, path in exist.items()})


def lessons() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def solutions() -> list[Path]:
    return sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))


def fill(folder: str, files: dict[str, bytes]) -> None:
    """Make a folder of docs/ hold these files and no others."""
    kept = {DOCS / folder / name for name in files}
    for path in (DOCS / folder).rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    for name, content in files.items():
        write(DOCS / folder / name, content)


def write(path: Path, content: bytes) -> None:
    """Leave a file alone that has this content already, so that a second build is short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
