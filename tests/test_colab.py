"""The installing cell: it installs only where minar is missing, leaves torch and numpy alone, and needs no run."""

import copy
import importlib.util
import json
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

from minar.lab.notebook import code_hashes, first_stale, source, stored_faults, tags

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))


def load(name):
    spec = spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


colab = load("colab")


def lesson():
    """A notebook whose outputs are current."""
    nb = {
        "cells": [
            {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Is it there?"]},
            {"cell_type": "code", "id": "b", "metadata": {}, "source": ["a = 1"], "outputs": [], "execution_count": 1},
            {"cell_type": "code", "id": "c", "metadata": {}, "source": ["b = 2"], "outputs": [], "execution_count": 2},
        ],
        "metadata": {"kernelspec": {"name": "python3"}, "minar": {"profile": "full"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    for cell, code_hash in zip(nb["cells"], code_hashes(nb)):
        if code_hash:
            cell["metadata"]["minar"] = {"hash": code_hash}
    return nb


def test_putting_it_in_changes_no_hash_and_needs_no_run():
    before, after = lesson(), colab.changed(lesson(), "minar>=0.1")
    assert [tags(cell) for cell in after["cells"]] == [[], ["colab", "remove-cell"], [], []]
    assert [h for h in code_hashes(after) if h] == [h for h in code_hashes(before) if h]
    assert first_stale(after) is None and stored_faults(after) == []


def test_it_can_be_put_in_twice_changed_and_taken_out():
    once = colab.changed(lesson(), "minar>=0.1")
    assert colab.changed(copy.deepcopy(once), "minar>=0.1") == once
    other = colab.changed(copy.deepcopy(once), "git+https://host/owner/repo")
    assert len(other["cells"]) == 4 and "git+https://host/owner/repo" in source(other["cells"][1])
    assert colab.changed(other, None) == lesson()
    words = {**lesson(), "cells": lesson()["cells"][:1]}
    assert colab.changed(words, "minar") == words, "where there is no code, there is nothing to install for"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_tool_leaves_every_other_byte_alone(path, tmp_path):
    old = colab.changed(json.loads(path.read_text(encoding="utf-8")), None)
    twin = tmp_path / path.name
    twin.write_text(colab.written(old), encoding="utf-8", newline="\n")
    before = twin.read_bytes()
    assert colab.main([str(tmp_path)]) == 0 and twin.read_bytes() != before
    assert colab.main([str(tmp_path), "--remove"]) == 0 and twin.read_bytes() == before


def test_all_notebooks_have_the_same_cell_or_none_has():
    cells = [c for path in NOTEBOOKS for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    found = {source(cell) for cell in cells if "colab" in tags(cell)}
    count = sum("colab" in tags(cell) for cell in cells)
    assert count in (0, len(NOTEBOOKS)) and len(found) <= 1, "run: python tools/colab.py notebooks"


def pip_lines(monkeypatch, spec, environment=None, asked_for="minar>=0.1"):
    """What the cell asks pip for, where find_spec("minar") gives `spec`."""
    transform = pytest.importorskip("IPython.core.inputtransformer2").TransformerManager().transform_cell
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.delenv("MINAR_SOURCE", raising=False)
    for name, value in (environment or {}).items():
        monkeypatch.setenv(name, value)
    space = {"get_ipython": lambda: SimpleNamespace(run_line_magic=lambda name, line: asked.append((name, line)))}
    exec(transform(source(colab.installing(asked_for))), space)
    return [(name, line.format_map(space)) for name, line in asked]


def test_it_does_nothing_where_minar_is(monkeypatch):
    assert pip_lines(monkeypatch, SimpleNamespace(origin="site-packages/minar/__init__.py")) == []


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["missing", "a folder of that name"])
def test_it_installs_what_is_missing_and_pins_what_is_there(monkeypatch, spec):
    pins = f"torch=={version('torch')} numpy=={version('numpy')}"
    assert pip_lines(monkeypatch, spec) == [("pip", f'install -q "minar>=0.1" {pins}')]
    here = {"MINAR_SOURCE": "/some where/minar"}
    assert pip_lines(monkeypatch, spec, here) == [("pip", f'install -q "/some where/minar" {pins}')]


def test_without_an_address_it_says_so_and_installs_nothing(monkeypatch):
    with pytest.raises(ModuleNotFoundError, match="let MINAR_SOURCE name"):
        pip_lines(monkeypatch, None, asked_for=colab.SOURCE)


def test_execute_runs_it_and_stores_nothing_of_it(tmp_path):
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [
        nbformat.v4.new_markdown_cell("# Is it there?"),
        nbformat.v4.new_code_cell("print(find_spec('minar') is not None)"),
    ]
    path = tmp_path / "tiny.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    colab.main([str(path)])
    execute = load("execute")
    assert execute.main([str(path), "--profile", "smoke"]) == 0
    _, cell, code = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert (cell["outputs"], cell["execution_count"], tags(cell)[0]) == ([], None, "colab")
    assert code["execution_count"] == 1 and code["outputs"][0]["text"] == ["True\n"], "it ran, and is not counted"

    before = path.read_bytes()
    assert execute.main([str(path), "--profile", "smoke", "--keep"]) == 0 and path.read_bytes() == before
    colab.main([str(path), "--source", "elsewhere"])
    assert first_stale(json.loads(path.read_text(encoding="utf-8"))) is None
