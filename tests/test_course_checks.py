"""What a course runs on its fork of the notebooks catches what it promises: docs/nbval.md, docs/course-ci.yml.

Four faults are planted in copies of a small notebook; the two commands of the CI file judge them, as they stand there.
"""

import copy
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbval")
pytest.importorskip("ipykernel")

from minar.lab.notebook import CHECKED, code_hashes, main  # noqa: E402

ROOT = Path(__file__).parent.parent
CI = (ROOT / "docs" / "course-ci.yml").read_text(encoding="utf-8")
READ, RUN = (shlex.split(line) for line in re.findall(r"- run: (python .*|pytest .*)", CI))
SETTINGS = dict(re.findall(r"^ +(MINAR_\w+): (\w+)", CI, re.MULTILINE))


def write(nb, path):
    path.write_text(json.dumps(nb), encoding="utf-8")


def text(nb, i):
    return "".join(nb["cells"][i]["source"])


def strip(nb):
    """As nbstripout does: outputs and counts go, metadata stay."""
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)


def edit_output(nb):
    nb["cells"][2]["outputs"][0]["text"] = ["20 steps\n"]


def edit_code(nb):
    nb["cells"][1]["source"] = text(nb, 1).replace("side = 2", "side = 1 + 1")


def claim_what_is_false(nb):
    """With hashes as if it had been run: of somebody who edits notebooks by hand, and does that, too."""
    nb["cells"][3]["source"] = text(nb, 3).replace("n_steps == 19", "n_steps < 19")
    for cell, code_hash in zip(nb["cells"], code_hashes(nb)):
        cell["metadata"].update({"minar": {"hash": code_hash}} if code_hash else {})


def work_with_it(nb):
    """What courses and students do, and no fault: other words, and an exercise that is solved."""
    nb["cells"][0]["source"] += "\nOur course meets on Mondays."
    nb["cells"][4]["source"] = "def twice(x):\n    return 2 * x"


PLANTED = {
    "used": work_with_it,
    "stripped": strip,
    "output": edit_output,
    "code": edit_code,
    "claim": claim_what_is_false,
}


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A folder with notebooks/, one for each fault, and nothing else of this repository."""
    folder = tmp_path_factory.mktemp("fork")
    (folder / "notebooks").mkdir()
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        markdown("# How many steps?"),
        code(
            "from minar.lab.profile import claim\nfrom minar.plan import region_groups\n\n"
            "side = 2\nplan = region_groups(8, 8, side)"
        ),
        code("print(plan.n_steps, 'steps')", metadata={"tags": [CHECKED]}),
        code("claim('four regions take 19 steps', plan.n_steps == 19)", metadata={"tags": [CHECKED]}),
        code("def twice(x):\n    raise NotImplementedError", metadata={"tags": ["exercise"]}),
    ]
    path = folder / "lesson.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    spec = spec_from_file_location("execute_tool", ROOT / "tools" / "execute.py")
    execute = module_from_spec(spec)
    spec.loader.exec_module(execute)
    assert execute.main([str(path), "--profile", "smoke"]) == 0
    lesson = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    for name, spoil in PLANTED.items():
        nb = copy.deepcopy(lesson)
        spoil(nb)
        write(nb, folder / "notebooks" / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def read(fork):
    """What reading says of each notebook. In this process, since another one would only load PyTorch again."""
    assert READ[:2] == ["python", "-m"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as m, redirect_stdout(said), pytest.raises(SystemExit) as ended:
        m.setattr(sys, "argv", READ[2:])
        m.chdir(fork)
        m.delitem(sys.modules, READ[2])  # or runpy would wonder
        runpy.run_module(READ[2], run_name="__main__")
    assert ended.value.code == 1
    return dict(re.findall(r"notebooks.(\w+)\.ipynb: (.*)", said.getvalue()))


@pytest.fixture(scope="module")
def ran(fork):
    """How many cells of each notebook nbval failed."""
    command = [sys.executable, "-m", *RUN, "-rf", "-p", "no:cacheprovider"]
    env = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=fork, env=env, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and f"{4 * len(PLANTED) - 2} passed" in done.stdout, done.stdout + done.stderr
    failed = re.findall(r"^FAILED notebooks.(\w+)\.ipynb", done.stdout, re.MULTILINE)
    return {name: failed.count(name) for name in PLANTED}


def test_all_notebooks_were_judged(read, ran):
    assert set(read) == set(ran) == set(PLANTED)
    assert SETTINGS == {"MINAR_PROFILE": "smoke"}


def test_what_is_no_fault_passes_both(read, ran):
    assert read["used"] == "ok" and ran["used"] == 0


def test_stripped_outputs_are_seen_by_reading_and_by_nothing_else(read, ran):
    assert "was never run" in read["stripped"] and "must store printed text" in read["stripped"]
    assert ran["stripped"] == 0, "nbval has learned to see it: say so in docs/nbval.md"


def test_an_edited_output_is_seen_by_running(read, ran):
    assert ran["output"] == 1 and read["output"] == "ok"


def test_edited_code_is_seen_by_reading_although_it_runs(read, ran):
    assert "cell 1 is not the code that made its output" in read["code"] and ran["code"] == 0


def test_a_false_claim_is_seen_by_running_whatever_the_hashes_say(read, ran):
    assert ran["claim"] == 1 and read["claim"] == "ok"


def test_a_folder_without_notebooks_is_no_success(tmp_path):
    assert main([str(tmp_path)]) == 2


def test_the_page_names_the_commands_of_the_ci_file():
    page = (ROOT / "docs" / "nbval.md").read_text(encoding="utf-8")
    for command in (READ, RUN):
        assert " ".join(command) in page
