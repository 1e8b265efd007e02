"""What pytest cannot see by running a notebook: are its stored outputs real, current, and of a size people can read?

nbval alone passes a notebook without outputs. These checks only read the file.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from minar.lab.notebook import CHECKED, code_hashes, is_code, source, stored_faults, tags

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))

MOST_LINES = 30  # imports not counted
MOST_BYTES = 1_000_000


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    faults = lesson_faults(nb) + size_faults(path)
    assert not faults, f"{path.name}: " + "; ".join(faults)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_outputs_are_of_the_full_profile(path):
    assert not profile_faults(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    faults = stored_faults(nb) + size_faults(path)
    assert not faults, f"{path.name}: " + "; ".join(faults)


def lesson_faults(nb):
    """Everything wrong with a lesson but the profile of its outputs, in words."""
    return stored_faults(nb) + writing_faults(nb) + checked_faults(nb)


def profile_faults(nb):
    if nb["metadata"].get("minar", {}).get("profile") == "full":
        return []
    return ["its outputs are not of profile full: run tools/execute.py --profile full"]


def writing_faults(nb):
    faults = []
    first = nb["cells"][0]
    if first["cell_type"] != "markdown" or not re.match(r"# .*\?", source(first)):
        faults.append("its first line is not a level-1 title with a question in it")

    ours = package_names()
    after = False
    for i, cell in enumerate(nb["cells"]):
        if not is_code(cell):
            continue
        if code_lines(cell) > MOST_LINES:
            faults.append(f"cell {i} has {code_lines(cell)} lines of code, more than {MOST_LINES}")
        again = ours.intersection(defined(source(cell))) if after else ()
        faults += [f"cell {i} defines {name}, which the package has" for name in sorted(again)]
        after = after or "package" in tags(cell)
    return faults


def checked_faults(nb):
    """What nbval compares must be there, and must not depend on the profile."""
    faults = []
    checked = [i for i, cell in enumerate(nb["cells"]) if is_code(cell) and CHECKED in tags(cell)]
    if len(checked) < 2:
        faults.append(f"{len(checked)} cell(s) tagged {CHECKED}, expected two at least")
    for i in checked:
        if re.search(r"\bwhen\s*=", source(nb["cells"][i])):
            faults.append(f"checked cell {i} makes a claim that prints differently in another profile")
    return faults


def size_faults(path):
    size = path.stat().st_size
    return [f"{size:,} bytes, more than {MOST_BYTES:,}"] if size > MOST_BYTES else []


def code_lines(cell):
    """Lines of code without comments, and without imports: a long list of names is nothing to follow."""
    lines = source(cell).splitlines()
    for node in ast.parse(source(cell)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def defined(text):
    return re.findall(r"^(?:def|class) ([A-Za-z]\w*)", text, re.MULTILINE)


def package_names():
    return {name for path in (ROOT / "minar").rglob("*.py") for name in defined(path.read_text(encoding="utf-8"))}


# The checks themselves: a tiny lesson without fault, and one fault at a time.


def code(text, output, *its_tags):
    stream = {"output_type": "stream", "name": "stdout", "text": [output]}
    return {
        "cell_type": "code",
        "metadata": {"tags": list(its_tags)},
        "execution_count": 1,
        "source": [text],
        "outputs": [stream] if output else [],
    }


def lesson():
    nb = {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Can a test read?\n", "\n", "Yes."]},
            code("print(1)", "1\n", CHECKED),
            code("def pick(): pass", "", "package"),
            code("raise_it = False", "to do\n", "exercise"),
            code("claim('two', True)", "claim: two\n", CHECKED),
        ],
        "metadata": {"kernelspec": {"name": "python3"}, "minar": {"profile": "full"}},
    }
    for cell, code_hash in zip(nb["cells"], code_hashes(nb)):
        if code_hash:
            cell["metadata"]["minar"] = {"hash": code_hash}
    return nb


def strip(nb):
    for cell in filter(is_code, nb["cells"]):
        cell.update(outputs=[], execution_count=None)


def plant(i, **changes):
    return lambda nb: nb["cells"][i].update(changes)


ERROR = [{"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}]

PLANTED = {
    "stripped outputs": (strip, "must store printed text"),
    "stripped counts": (strip, "cell 3 was never run"),
    "edited code": (plant(4, source="print(2)"), "cell 4 is not the code"),
    "an error": (plant(3, outputs=ERROR), "cell 3 stores an error"),
    "profile smoke": (lambda nb: nb["metadata"]["minar"].update(profile="smoke"), "not of profile full"),
    "no record": (lambda nb: nb["metadata"].pop("minar"), "not of profile full"),
    "widgets": (lambda nb: nb["metadata"].update(widgets={}), "widgets"),
    "another kernel": (lambda nb: nb["metadata"]["kernelspec"].update(name="mine"), "kernel"),
    "no question": (plant(0, source="# Reading"), "title"),
    "one checked cell": (lambda nb: nb["cells"].pop(), "expected two"),
    "a picture": (plant(1, outputs=[{"output_type": "display_data", "data": {}}]), "must store printed text"),
    "a claim of full": (plant(4, source="claim('two', True, when='full')"), "another profile"),
    "a long cell": (plant(1, source="print(1)\n" * 31), "31 lines"),
    "said twice": (plant(4, source="class GPT: pass"), "cell 4 defines GPT"),
}


def test_a_lesson_without_fault_passes():
    assert lesson_faults(lesson()) + profile_faults(lesson()) == []


@pytest.mark.parametrize("name", PLANTED)
def test_planted_fault_is_found(name):
    spoil, words = PLANTED[name]
    nb = lesson()
    spoil(nb)
    assert words in "; ".join(lesson_faults(nb) + profile_faults(nb))


def test_an_edited_exercise_needs_no_run():
    nb = lesson()
    plant(3, source="answer = 42")(nb)
    assert lesson_faults(nb) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_solutions_are_judged_by_the_cells_of_the_lesson(path):
    nb, twin = (json.loads(p.read_text(encoding="utf-8")) for p in (path, solutions_of(path)))
    checks = [source(cell) for cell in nb["cells"] if is_code(cell) and re.search(r"^exercise\(", source(cell), re.M)]
    assert checks and set(checks) <= {source(cell) for cell in twin["cells"]}


def solutions_of(path):
    return path.parent / "solutions" / f"{path.stem.split('_')[0]}_solutions.ipynb"


def test_a_long_file_is_found(tmp_path):
    path = tmp_path / "long.ipynb"
    path.write_text(" " * (MOST_BYTES + 1))
    assert "bytes" in size_faults(path)[0]
