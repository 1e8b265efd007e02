"""Homework notebooks as plain Python: the template that students get, what they wrote, and the reference.

There is one source of each assignment, the instructor's notebook; everything else is read off it.
"""

import ast
import json
import re
from importlib import util
from pathlib import Path
from types import ModuleType

from minar.lab.notebook import source

SOURCE = Path(__file__).parent / "source"
STUB = 'raise NotImplementedError("your turn")'  # as in nbgrader_config.py


def checks(hw: str, folder: Path = SOURCE) -> ModuleType:
    """The module hwN_checks of an assignment: task(course) and, for those that are judged by laws, CHECKS."""
    spec = util.spec_from_file_location(f"{hw}_checks", folder / hw / f"{hw}_checks.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def for_course(text: str, task: object) -> str:
    """The reference of another course: in lines marked `# course: name` the value becomes that of the task."""
    return re.sub(r"= .*  # course: (\w+)", lambda m: f"= {literal(getattr(task, m[1]))}  # course: {m[1]}", text)


def literal(value: object) -> str:
    """As ruff writes it."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def without_solutions(text: str) -> str:
    """What lies between the solution markers becomes a stub, as nbgrader does it."""
    pattern = r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$"
    return re.sub(pattern, rf"\1{STUB}", text, flags=re.MULTILINE | re.DOTALL)


def without_markers(text: str) -> str:
    """The reference as one would write it by hand."""
    return re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", text, flags=re.MULTILINE)


def source_code(hw: str) -> str:
    """The imports and the graded functions of an assignment, with solutions and markers."""
    code = (c for c in cells(SOURCE / hw / f"{hw}.ipynb") if c["cell_type"] == "code")
    kept = (c for c in code if grade_id(c) == "imports" or answers(c))
    return "\n\n\n".join(source(c) for c in kept)


def template(hw: str, course: str) -> str:
    """The .py file that a student fills in."""
    task = checks(hw).task(course).text()
    tries = f" Try it with `python {hw}_checks.py {hw}.py`." if hasattr(checks(hw), "CHECKS") else ""
    return f'"""Homework {hw[-1]}. {task}\n\n{hw}.md says more.{tries}\n"""\n\n{without_solutions(source_code(hw))}\n'


def text(hw: str, course: str) -> str:
    """What is asked, as Markdown: the notebook without its code."""
    task = checks(hw).task(course).text()
    words = (c for c in cells(SOURCE / hw / f"{hw}.ipynb") if c["cell_type"] == "markdown" and not answers(c))
    return "\n\n".join(task if grade_id(c) == "task" else source(c) for c in words) + "\n"


def reference(hw: str, course: str) -> str:
    """A right .py file for a course."""
    return without_markers(for_course(source_code(hw), checks(hw).task(course))) + "\n"


def answer(path: Path, hw: str) -> str:
    """What a student wrote in a notebook, as a .py file: the graded cells, and the functions of unlocked ones.

    Of a cell that was copied the last one counts, as in nbgrader's own rule. Raises ValueError if it is no notebook.
    """
    theirs = [c for c in cells(path) if c.get("cell_type") == "code" and not locked(c)]
    last = {grade_id(c): i for i, c in enumerate(theirs) if answers(c)}
    parts = [source(c) for c in cells(SOURCE / hw / f"{hw}.ipynb") if grade_id(c) == "imports"]
    for i, cell in enumerate(theirs):
        if answers(cell) and last[grade_id(cell)] == i:
            parts.append(source(cell))
        elif not answers(cell):
            parts.append(functions(source(cell)))
    return "\n\n\n".join(part for part in parts if part) + "\n"


def functions(text: str) -> str:
    """The functions and classes of a cell, without what it runs. A cell that is no plain Python (%magic) gives none."""
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return ""
    return "\n\n\n".join(ast.unparse(n) for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))


def cells(path: Path) -> list[dict]:
    """The cells of a notebook file. Raises ValueError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} is not a notebook: {error}") from None


def grade_id(cell: dict) -> str | None:
    return cell["metadata"].get("nbgrader", {}).get("grade_id")


def answers(cell: dict) -> bool:
    """Is this a cell that students fill in?"""
    return bool(cell["metadata"].get("nbgrader", {}).get("solution"))


def locked(cell: dict) -> bool:
    return bool(cell["metadata"].get("nbgrader", {}).get("locked"))
