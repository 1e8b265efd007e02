"""Above each notebook: where to get it, where to run it, what made its outputs. No request before a click."""

import json
from pathlib import Path

from site_sources import ROOT
from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", add_notebook)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_notebook(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """For _templates/page.html."""
    if page.startswith("notebooks/"):
        path = ROOT / f"{page}.ipynb"
        context["notebook"] = {
            "name": path.name,
            "launch": launch_links(page, app.config.repository),
            "other": counterpart(path),
            "made": made(json.loads(path.read_text(encoding="utf-8"))["metadata"].get("minar", {})),
        }


def launch_links(page: str, repository: str) -> dict[str, str]:
    """Label -> address. None while it is not known where the repository lives."""
    if not repository:
        return {}
    place = f"{repository}/blob/main/{page}.ipynb"
    return {
        "run it on Colab": f"https://colab.research.google.com/github/{place}",
        "see it on GitHub": f"https://github.com/{place}",
    }


def counterpart(path: Path) -> tuple[str, str] | None:
    """The solutions of a lesson, or the lesson of the solutions: label and page."""
    number = path.name.split("_")[0]
    is_lesson = path.parent.name == "notebooks"
    folder = path.parent / "solutions" if is_lesson else path.parent.parent
    found = sorted(folder.glob(f"{number}_*.ipynb"))
    label = "solutions to its exercises" if is_lesson else "the lesson"
    return (label, str(found[0].relative_to(ROOT).with_suffix("").as_posix())) if found else None


def made(facts: dict) -> str:
    """What tools/execute.py wrote down when it made the outputs."""
    if not facts:
        return ""
    seconds = facts["seconds"]
    took = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
    return f"outputs made in {took}, {facts['device']}, profile {facts['profile']}, {facts['date']}"
