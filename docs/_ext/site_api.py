"""A page for each public module, and one that lists them in the order in which to read them."""

import ast
import inspect
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from docutils import nodes
from site_docstrings import inline
from site_sources import ROOT, fill
from sphinx.application import Sphinx

PARTS = {  # title of each part of the code: the folder whose modules it lists
    "The core, in reading order": "",
    "One paper a file": "papers",
    "Official weights": "ports",
    "Around the models": "lab",
}


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", make_pages)
    app.connect("builder-inited", import_modules)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", drop_object)
    return {"parallel_read_safe": True}


def make_pages(app: Sphinx, config) -> None:
    made = {f"{name}.rst": page(name) for name in modules()} | {"index.rst": contents()}
    fill("api", {name: text.encode() for name, text in made.items()})


def import_modules(app: Sphinx) -> None:
    """Before Sphinx puts a mock-up of Triton in place, at which parts of PyTorch would stumble."""
    for name in modules():
        with suppress(ImportError):  # it needs Triton, or is broken, which Sphinx will say
            import_module(name)


def skip(app: Sphinx, kind: str, name: str, member: object, skipped: bool, options: object) -> bool | None:
    """True for what another package puts into our classes, as matplotlib does with `set`; None leaves it to Sphinx."""
    if not inspect.isfunction(member):
        return None
    file = Path(inspect.unwrap(member).__code__.co_filename)
    return None if file.is_relative_to(ROOT / "minar") else True


def drop_object(app: Sphinx, doctree: nodes.document) -> None:
    """That a class is an object goes without saying."""
    for line in [line for line in doctree.findall(nodes.paragraph) if line.astext() == "Bases: object"]:
        line.parent.remove(line)


def modules() -> dict[str, Path]:
    """Name -> file of each public module, the core in the order in which the README reads it."""
    named = {_name(path): path for path in sorted((ROOT / "minar").rglob("*.py"))}
    read = re.findall(r"\(minar/(\w+)\.py\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    first = [name for name in ("minar", *(f"minar.{name}" for name in read)) if name in named]
    public = [name for name in named if not any(part.startswith("_") for part in name.split("."))]
    return {name: named[name] for name in dict.fromkeys(first + public)}


def page(name: str) -> str:
    return f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n"


def contents() -> str:
    """One line for each module, in parts. What belongs to no part goes to the first, so that nothing gets lost."""
    lines = ["The code", "========", ""]
    for title, names in parts().items():
        lines += [title, "-" * len(title), "", *(f"- :doc:`{name}`. {summary(name)}" for name in names), ""]
        lines += [".. toctree::", "   :hidden:", "   :titlesonly:", "", *(f"   {name}" for name in names), ""]
    return "\n".join(lines)


def parts() -> dict[str, list[str]]:
    """Title -> names of modules."""
    titles = {f"minar.{folder}": title for title, folder in PARTS.items() if folder}
    found = {title: [] for title in PARTS}
    for name in modules():
        found[titles.get(".".join(name.split(".")[:2]), next(iter(PARTS)))].append(name)
    return found


def summary(name: str) -> str:
    """The first paragraph about a module, without importing it, as reStructuredText."""
    about = ast.get_docstring(ast.parse(modules()[name].read_text(encoding="utf-8"))) or ""
    return inline(" ".join(about.split("\n\n")[0].split()).removeprefix("minar: "))


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
