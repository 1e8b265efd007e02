"""The tool that writes stored outputs, on notebooks of a few cells."""

import importlib.util
import json
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

from minar.lab.notebook import code_hashes, first_stale, stored_hashes  # noqa: E402

TOOL = Path(__file__).parent.parent / "tools" / "execute.py"
spec = importlib.util.spec_from_file_location("execute_tool", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

KEPT = "import os\nprint('kept' if os.environ.get('MINAR_KEEP') else 'new')"


def write(path, *sources, exercise=None):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    if exercise is not None:
        cells[exercise].metadata.tags = ["exercise"]
    title = nbformat.v4.new_markdown_cell("# Does it run?")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, *cells]), path)
    return path


def read(path):
    return json.loads(path.read_text())


def edit(path, i, source):
    nb = read(path)
    nb["cells"][i]["source"] = source
    path.write_text(json.dumps(nb))


def printed(path):
    return ["".join("".join(o["text"]) for o in cell.get("outputs", [])).strip() for cell in read(path)["cells"]]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook run once, for the tests that only look at it or change a copy."""
    folder = tmp_path_factory.mktemp("executed")
    path = write(
        folder / "tiny.ipynb",
        "import os\nfrom minar.lab.profile import profile\nprint(profile(), os.path.basename(os.getcwd()))",
        "import sys\nfor i in range(3):\n    print(f'\\r{i}', end='', file=sys.stderr, flush=True)",
        KEPT,
        "print('to do')",
        KEPT,
        exercise=3,
    )
    nb = read(path)
    nb["metadata"] = {"widgets": {}, "vscode": {}, "kernelspec": {"name": "mine", "display_name": "Mine"}}
    nb["cells"][1]["metadata"] = {"execution": {"iopub.execute_input": "2020"}, "collapsed": True, "tags": ["package"]}
    path.write_text(json.dumps(nb))
    ids = [cell["id"] for cell in nb["cells"]]

    assert tool.main([str(path), "--profile", "smoke"]) == 0
    return path, ids


@pytest.fixture
def notebook(executed, tmp_path):
    copy = tmp_path / "tiny.ipynb"
    copy.write_bytes(executed[0].read_bytes())
    return copy


def test_provenance_and_hashes_are_there(executed):
    path, ids = executed
    nb = read(path)
    record = nb["metadata"]["minar"]
    assert record["profile"] == "smoke" and set(record) == {"profile", "device", "torch", "python", "seconds", "date"}
    assert stored_hashes(nb) == code_hashes(nb) and first_stale(nb) is None
    assert [bool(h) for h in code_hashes(nb)] == [False, True, True, True, False, True]
    assert [cell["id"] for cell in nb["cells"]] == ids


def test_outputs_are_of_the_notebook_folder_and_clean(executed):
    path, _ = executed
    nb = read(path)
    assert printed(path) == ["", f"smoke {path.parent.name}", "2", "new", "to do", "new"]
    assert [cell["execution_count"] for cell in nb["cells"][1:]] == [1, 2, 3, 4, 5]
    assert set(nb["metadata"]) == {"kernelspec", "language_info", "minar"}
    assert nb["metadata"]["kernelspec"]["name"] == "python3"
    assert set(nb["cells"][1]["metadata"]) == {"tags", "minar"}


def test_keep_keeps_what_lies_above_the_change(notebook):
    edit(notebook, 5, KEPT + "\nprint('edited')")
    assert tool.main([str(notebook), "--profile", "smoke", "--keep"]) == 0
    assert printed(notebook)[3:] == ["new", "to do", "new\nedited"]
    record = read(notebook)["metadata"]["minar"]
    assert record["kept"]["before_cell"] == 5 and record["kept"]["profile"] == "smoke"
    assert first_stale(read(notebook)) is None


def test_keep_tells_unchanged_cells_that_they_may_load(notebook):
    edit(notebook, 4, KEPT)
    assert tool.main([str(notebook), "--profile", "smoke", "--keep"]) == 0
    assert printed(notebook)[3:] == ["new", "kept", "new"], "only the exercise is new, and it ran in a kept kernel"
    assert "kept" not in read(notebook)["metadata"]["minar"]


def test_keep_does_nothing_for_a_current_notebook(notebook):
    nb = read(notebook)
    del nb["cells"][4]
    notebook.write_text(json.dumps(nb))
    before = notebook.read_bytes()
    assert tool.main([str(notebook), "--profile", "smoke", "--keep"]) == 0
    assert notebook.read_bytes() == before


def test_keep_never_mixes_profiles(notebook):
    assert tool.first_new(nbformat.read(notebook, as_version=4), "smoke") == 6
    assert tool.first_new(nbformat.read(notebook, as_version=4), "full") == 0


def test_a_failing_cell_leaves_the_file_untouched(tmp_path, capsys):
    path = write(tmp_path / "bad.ipynb", "x = 1", "raise ValueError('planted')")
    before = path.read_bytes()
    assert tool.main([str(path), "--profile", "smoke"]) == 1
    said = capsys.readouterr().err
    assert "cell 2" in said and "ValueError: planted" in said and "\x1b" not in said
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_limit_ends_a_run_and_keeps_what_is_done(tmp_path, capsys):
    path = write(tmp_path / "long.ipynb", "print(1)", "import time; time.sleep(60)", "print(2)")
    asked = [str(path), "--profile", "smoke", "--out", str(tmp_path / "built"), "--limit", "4"]
    start = time.monotonic()
    assert tool.main(asked) == 1 and time.monotonic() - start < 30
    assert "cell 2 was still running" in capsys.readouterr().err
    done = read(tmp_path / "built" / "long.failed.ipynb")["cells"]
    assert done[1]["outputs"][0]["text"] == ["1\n"] and done[3]["execution_count"] is None


def test_out_writes_elsewhere(tmp_path):
    path = write(tmp_path / "tiny.ipynb", "print(1)")
    before = path.read_bytes()
    assert tool.main([str(path), "--profile", "smoke", "--out", str(tmp_path / "built")]) == 0
    assert path.read_bytes() == before and printed(tmp_path / "built" / "tiny.ipynb") == ["", "1"]


def test_hashes_are_chained_and_leave_out_exercises_and_text():
    def notebook(first="a = 1", text="words", answer="pass", tag="nbval-check-output"):
        return {
            "cells": [
                {"cell_type": "code", "metadata": {"tags": [tag]}, "source": first},
                {"cell_type": "markdown", "metadata": {}, "source": [text]},
                {"cell_type": "code", "metadata": {"tags": ["exercise"]}, "source": [answer]},
                {"cell_type": "code", "metadata": {}, "source": ["b = 2\n", "c = 3"]},
            ]
        }

    hashes = code_hashes(notebook())
    assert code_hashes(notebook(text="other", answer="other")) == hashes
    for changed in (notebook(first="a = 2"), notebook(tag="package")):
        assert not set(code_hashes(changed)) & set(hashes) - {None}


def test_a_warning_does_not_name_the_folders_of_the_machine(tmp_path):
    warning = "/some/where/lib/python3.12/site-packages/torch/_inductor/compile_fx.py:322: UserWarning: slow"
    path = write(tmp_path / "warns.ipynb", f"import sys\nprint({warning!r}, file=sys.stderr)")
    assert tool.main([str(path), "--profile", "smoke"]) == 0
    assert printed(path)[1] == "torch/_inductor/compile_fx.py:322: UserWarning: slow"
