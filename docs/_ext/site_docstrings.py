"""Docstrings here are plain text with `names`, *stress*, $formulas$ and indented code; Sphinx reads reStructuredText.

They are translated, and whatever would be markup by chance (`2 ** n`, `|x|`, `copy_`) is protected.
"""

import ast
import re
from itertools import groupby
from textwrap import dedent

from sphinx.application import Sphinx

MARKED = re.compile(r"`([^`]+)`|\$(\S|\S[^$]*\S)\$|(?<!\S)\*(\w[\w ]*)\*(?=[\s.,:;)]|$)")


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-process-docstring", translate)
    return {"parallel_read_safe": True}


def translate(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    is_text = not "".join(lines).startswith("Alias for field number")  # what Python says of the fields of a NamedTuple
    lines[:] = to_rst(lines) if is_text else []


def to_rst(lines: list[str]) -> list[str]:
    """Text and indented code, alternating, as reStructuredText."""
    rst = []
    for is_code, run in groupby(_filled(lines), key=lambda line: line.startswith("    ")):
        block = list(run)
        rst += ["", _heading(block), "", *block, ""] if is_code else [inline(line) for line in block]
    return rst


def inline(line: str) -> str:
    """One line of text: what is marked stays marked, all the rest is protected."""
    rst, end = "", 0
    for match in MARKED.finditer(line):
        rst += _protect(line[end : match.start()]) + r"\ " + _marked(*match.groups()) + r"\ "
        end = match.end()
    return rst + _protect(line[end:])


def _heading(block: list[str]) -> str:
    """Python is coloured, tables and commands are not."""
    try:
        ast.parse(dedent("\n".join(block)))
    except SyntaxError:
        return ".. code-block:: text"
    return ".. code-block:: python"


def _filled(lines: list[str]) -> list[str]:
    """Blank lines within code become code, so that it stays in one piece."""
    filled = list(lines)
    for i in range(len(filled) - 2, 0, -1):
        if not filled[i].strip() and filled[i - 1].startswith("    ") and filled[i + 1].startswith("    "):
            filled[i] = "    "
    return filled


def _marked(code: str | None, formula: str | None, stress: str | None) -> str:
    if formula or stress:
        return f":math:`{formula}`" if formula else f"*{stress}*"
    return f":py:obj:`{code}`" if re.fullmatch(r"[\w.]+", code) else f"``{code}``"  # a link where the name is known


def _protect(text: str) -> str:
    return re.sub(r"([\\*|`_])", r"\\\1", text)
