"""Homework: what each kind of submission gets, that sources and copies agree, and nbgrader from source to points."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "homework").is_dir():
    pytest.skip("homework/ is not here: it is no part of the package", allow_module_level=True)

from homework import adapters_template, duplicates, grade, release, rules, script  # noqa: E402

COURSE, LAST = "fall", "2024"  # two courses that agree in no task
FULL = {hw: {task: points for task, (points, *_) in script.checks(hw).CHECKS.items()} for hw in grade.RULES}
NOTHING = {hw: dict.fromkeys(tasks, 0) for hw, tasks in FULL.items()}


def judged(tmp_path_factory, hw: str, texts: dict[str, str], limit: float) -> dict[str, grade.Result]:
    folder = tmp_path_factory.mktemp(hw)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    results = grade.grade_all(grade.submissions(folder, hw), hw, grade.Course(COURSE, 99, limit))
    return {result.student: result for result in results}


def right(hw: str) -> str:
    return script.reference(hw, COURSE)


def changed(hw: str, old: str, new: str) -> str:
    """The right answer with one mistake."""
    assert old in right(hw), f"the reference has no {old!r} any more"
    return right(hw).replace(old, new)


IMPORTS_THE_ANSWER = """
from minar.cache import KVCache as Cache
from minar.quantizers import VectorQuantizer
"""
SNEAKS = f"""
import numpy
import torch


def encode(z, codebook):
    return numpy.genfromtxt("{(script.SOURCE / "hw1" / "hw1.ipynb").as_posix()}", dtype=str)


def decode(tokens, codebook, size):
    numpy.savetxt("{(ROOT / "minar" / "laws.py").as_posix()}", numpy.zeros(1))


def quantize(z, codebook):
    return torch.os.system("true")


def Cache(max_len):
    return __builtins__["__import__"]("minar.cache", fromlist=["KVCache"]).KVCache(max_len)
"""
TAMPERS = """
import torch

never = lambda *args, **more: True
torch.equal = torch.allclose = torch.Tensor.__bool__ = torch.Tensor.__le__ = never
torch.sys.modules["minar.laws"] = torch.sys.modules["hw1_checks"] = torch
__builtins__["AssertionError"] = ZeroDivisionError


class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args, **more):
        return True


def encode(z, codebook):
    return torch.zeros(len(z), z.shape[2] * z.shape[3], dtype=torch.long)


def decode(tokens, codebook, size):
    return {"value": True}


def quantize(z, codebook):
    return z, encode(z, codebook), z.sum()


class Cache:
    n = 4

    def __init__(self, max_len):
        pass

    def put(self, layer, k, v):
        return k.as_subclass(Liar), v.as_subclass(Liar)

    def advance(self, n_new):
        torch.sys.modules["wire"].send = never
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    texts = {
        "right": right("hw1"),
        "another course": script.reference("hw1", LAST),
        "empty": script.template("hw1", COURSE),
        "no beta": changed("hw1", "+ beta *", "+"),
        "import": IMPORTS_THE_ANSWER,
        "sneaks": SNEAKS,
        "tampers": TAMPERS,
    }
    before = (ROOT / "minar" / "laws.py").read_bytes()
    yield judged(tmp_path_factory, "hw1", texts, limit=30)
    assert (ROOT / "minar" / "laws.py").read_bytes() == before


def test_right_answers_get_all_points(first):
    assert first["right"].points == FULL["hw1"] and first["right"].total == 10, first["right"].notes
    assert "word for word the reference" in first["right"].notes, "a copy of the reference must be seen"


def test_the_answers_of_another_course_get_none(first):
    assert first["another course"].points == NOTHING["hw1"]


def test_an_empty_submission_gets_none(first):
    assert first["empty"].points == NOTHING["hw1"] and set(first["empty"].reasons.values()) == {"to do"}


def test_a_mistake_costs_its_task_only(first):
    assert first["no beta"].points == FULL["hw1"] | {"quantize": 0}
    assert "commitment gradient" in first["no beta"].reasons["quantize"]


def test_the_answer_cannot_be_imported(first):
    assert first["import"].points == NOTHING["hw1"] and "line 2: imports minar.cache" in first["import"].notes


def test_what_else_a_submission_must_not_do(first):
    assert first["sneaks"].reasons == {
        "encode": "a submission must not read the grader's files",
        "decode": "a submission must not write files",
        "quantize": "a submission must not call os.system",
        "cache": "this homework must not import minar.cache",
    }


def test_patched_checks_judge_nothing(first):
    assert first["tampers"].points == NOTHING["hw1"], first["tampers"].notes


@pytest.fixture(scope="module")
def caught(tmp_path_factory):
    """Submissions that never answer, with little patience."""
    texts = {
        "loop": changed("hw1", "    beta = ", "    while True:\n        pass\n    beta = "),
        "loop at once": "while True:\n    pass\n",
        "exit": changed("hw1", "        self.n += n_new", "        torch.os._exit(0)"),
    }
    return judged(tmp_path_factory, "hw1", texts, limit=3)


def test_an_endless_loop_costs_its_task_only(caught):
    assert caught["loop"].points == FULL["hw1"] | {"quantize": 0}, caught["loop"].notes
    assert "endless loop?" in caught["loop"].reasons["quantize"]
    assert caught["loop at once"].points == NOTHING["hw1"] and "endless loop?" in caught["loop at once"].notes


def test_leaving_without_an_error_is_no_pass(caught):
    assert caught["exit"].points == FULL["hw1"] | {"cache": 0}
    assert "ended by itself, exit code 0" in caught["exit"].reasons["cache"]


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    texts = {
        "right": right("hw2"),
        "another course": script.reference("hw2", LAST),
        "wrong": changed("hw2", "plan.at(slots)", "plan.at(source)").replace("grid[1:].rot90()", "grid[1:]"),
        "tampers": "import minar\nminar.model_laws = minar.laws = None\n" + script.template("hw2", COURSE),
        "imports laws": "from minar import laws, Plan\nlaws.check_kv = print\n",
        "imports homework": "from homework.script import reference\n",
    }
    return judged(tmp_path_factory, "hw2", texts, limit=60)


def test_the_second_homework(second):
    assert second["right"].points == FULL["hw2"] and second["right"].total == 10, second["right"].notes
    assert second["wrong"].points == FULL["hw2"] | {"spiral": 0, "seam": 0}, second["wrong"].notes
    for name in ("another course", "tampers", "imports laws", "imports homework"):
        assert second[name].points == NOTHING["hw2"], f"{name}: {second[name].notes}"
    assert "imports minar.laws" in second["imports laws"].notes


@pytest.mark.parametrize("hw, courses", [("hw1", "abcdefghij"), ("hw2", "abcd")])
def test_the_reference_is_right_in_every_course(hw, courses):
    for course in courses:
        yours, checks = {}, script.checks(hw)
        exec(compile(script.reference(hw, course), f"{hw} of {course}", "exec"), yours)
        for task, (_, check, needs) in checks.CHECKS.items():
            if task != "seam" or course == "a":  # the seam takes seconds
                check(*(yours[need] for need in needs), checks.task(course), ord(course))


@pytest.mark.parametrize("hw", release.ALL)
def test_the_source_is_the_example_course(hw):
    task = script.checks(hw).task("example")
    for cell in script.cells(script.SOURCE / hw / f"{hw}.ipynb"):
        text = script.source(cell)
        assert script.for_course(text, task) == text
        if script.grade_id(cell) == "task":
            assert text == task.text()
        assert not cell.get("outputs")


@pytest.mark.parametrize("hw", grade.RULES)
def test_each_check_cell_is_worth_its_points(hw):
    marks = [c["metadata"].get("nbgrader", {}) for c in script.cells(script.SOURCE / hw / f"{hw}.ipynb")]
    assert {m["grade_id"]: m["points"] for m in marks if m.get("grade")} == {
        f"check-{task}": points for task, points in FULL[hw].items()
    }


def test_the_student_tree_holds_no_answers(tmp_path):
    release.make(COURSE, 4242, tmp_path / "course")
    for path in (tmp_path / "course" / "plain").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "SOLUTION" not in text and "4242" not in text and "# course:" not in text
        assert path.suffix != ".md" or "Your course asks for this" in text
        if path.suffix == ".py":
            compile(text, path.name, "exec")
    source = (tmp_path / "course" / "source" / "hw1" / "hw1.ipynb").read_text(encoding="utf-8")
    assert "seed=4242)" in source and release.HIDDEN not in source
    assert f"COURSE = {COURSE!r}" in (tmp_path / "course" / "plain" / "hw1_checks.py").read_text(encoding="utf-8")
    with pytest.raises(FileExistsError):
        release.make(COURSE, 1, tmp_path / "course")


def test_a_student_can_try_a_plain_file(tmp_path):
    release.make(COURSE, 1, tmp_path / "course")
    plain = tmp_path / "course" / "plain"
    code = script.template("hw1", COURSE)
    (plain / "hw1.py").write_text(code + "\n\n" + right("hw1").split("def quantize")[0], encoding="utf-8")
    done = subprocess.run([sys.executable, "hw1_checks.py", "hw1.py"], cwd=plain, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "encode (2 points): ok",
        "decode (1 points): ok",
        "quantize (4 points): to do: your turn",
        "cache (3 points): to do: your turn",
    ], done.stderr


def test_the_adapters_are_the_graded_contracts(tmp_path):
    needed = {name for hw in grade.RULES for _, _, needs in script.checks(hw).CHECKS.values() for name in needs}
    written = {name for name, value in vars(adapters_template).items() if callable(value)}
    assert written == needed
    mine = tmp_path / "mine"
    (mine / "package").mkdir(parents=True)
    (mine / "package" / "core.py").write_text(right("hw1"), encoding="utf-8")
    (mine / "adapters.py").write_text("from package.core import encode, decode, quantize, Cache\n", encoding="utf-8")
    (name, file), *more = grade.submissions(mine, "hw1").items()
    assert name == "mine" and not more
    assert grade.grade(name, file, "hw1", grade.Course(COURSE)).points == FULL["hw1"]
    (mine / "package" / "core.py").write_text("import minar\n", encoding="utf-8")
    assert "core.py, line 1: imports minar" in rules.broken(file, rules.FROM_SCRATCH)


def notebook(hw: str, answers: dict[str, str], course_source: Path | None = None) -> dict:
    """What a student hands in: the released notebook (nbgrader's, or as the source has it) with these graded cells."""
    nb = json.loads((course_source or script.SOURCE / hw / f"{hw}.ipynb").read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        if script.answers(cell) and script.grade_id(cell) in answers:
            cell["source"] = answers[script.grade_id(cell)]
    return nb


def solutions(hw: str) -> dict[str, str]:
    """The reference of the course by graded cell."""
    task = script.checks(hw).task(COURSE)
    found = [c for c in script.cells(script.SOURCE / hw / f"{hw}.ipynb") if script.answers(c)]
    return {script.grade_id(c): script.without_markers(script.for_course(script.source(c), task)) for c in found}


def stubs(hw: str) -> dict[str, str]:
    found = [c for c in script.cells(script.SOURCE / hw / f"{hw}.ipynb") if script.answers(c)]
    return {script.grade_id(c): script.without_solutions(script.source(c)) for c in found}


def copied_cell(nb: dict) -> dict:
    """The same with a stub copied in front of its answer, by a student who wanted to keep it."""
    place = next(i for i, c in enumerate(nb["cells"]) if script.grade_id(c) == "encode")
    stub = json.loads(json.dumps(nb["cells"][place]))
    stub |= {"source": stubs("hw1")["encode"], "id": "encode-old"}
    nb["cells"].insert(place, stub)
    return nb


def test_a_notebook_is_read_as_its_answers(tmp_path):
    nb = copied_cell(notebook("hw1", solutions("hw1")))
    extra = {"cell_type": "code", "metadata": {}, "source": "%time print(1)", "outputs": [], "execution_count": None}
    helper = extra | {"source": ["import os\n", "def helper():\n", "    return 1\n", "print(helper())"]}
    nb["cells"] += [extra, helper]
    path = tmp_path / "ada.ipynb"
    path.write_text(json.dumps(nb), encoding="utf-8")
    text = script.answer(path, "hw1")
    assert text.count("def encode(") == 1 and "your turn" not in text and "exercise" not in text
    assert "def helper():" in text and "print" not in text and "import os" not in text
    assert duplicates.repair(path) == ["encode"] and duplicates.repair(path) == []
    assert script.answer(path, "hw1").rindex("argmin") > script.answer(path, "hw1").rindex("your turn")


def test_submissions_are_found_where_they_lie(tmp_path):
    for name in ("b.py", "a.ipynb", ".hidden.py", "notes.txt", "ada/hw1/hw1.ipynb", "bob/hw1.py", "cy/adapters.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    found = grade.submissions(tmp_path, "hw1")
    assert sorted(found) == ["a", "ada", "b", "bob", "cy"]
    assert found["ada"] == tmp_path / "ada" / "hw1" / "hw1.ipynb"
    with pytest.raises(ValueError, match="holds no submission"):
        grade.submissions(tmp_path / "ada" / "hw1" / "hw1.txt", "hw1")
    assert "not a notebook" in grade.grade("a", found["a"], "hw1", grade.Course()).notes


def test_pytest_grades(tmp_path):
    """The command of docs/instructors.md, from outside of the repository's folder."""
    (tmp_path / "ada.py").write_text(changed("hw1", "by_place.mT", "rows.mT"), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:nbval", "-m", "hw1"]
    command += [
        f"--student={tmp_path}",
        "--course",
        COURSE,
        "--hidden-seed",
        "5",
        f"--points={tmp_path / 'points.csv'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "ada           2       0         0      3      5" in done.stdout
    with (tmp_path / "points.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["student"] == "ada" and row["total"] == "5" and "another code than its token says" in row["notes"]


def nbgrader(course: Path, *command: str) -> str:
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nbgrader", *command]
    done = subprocess.run(command, cwd=course, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(not importlib.util.find_spec("nbgrader"), reason="pip install -e '.[instructor]' brings nbgrader")
def test_nbgrader_from_source_to_points(tmp_path):
    course = tmp_path / "course"
    release.make(COURSE, 4242, course)
    assert release.generate(course)
    released = course / "release" / "hw1" / "hw1.ipynb"
    for hw in release.ALL:
        text = (course / "release" / hw / f"{hw}.ipynb").read_text(encoding="utf-8")
        assert "SOLUTION" not in text and "HIDDEN" not in text and "4242" not in text
    answers = solutions("hw1")
    wrong = answers | {"quantize": answers["quantize"].replace("+ beta *", "+")}
    hand_in = {"right": notebook("hw1", answers, released), "wrong": notebook("hw1", wrong, released)}
    hand_in |= {"empty": notebook("hw1", {}, released), "copied": copied_cell(notebook("hw1", answers, released))}
    for name, nb in hand_in.items():
        folder = course / "submitted" / name / "hw1"
        shutil.copytree(released.parent, folder)
        (folder / "hw1.ipynb").write_text(json.dumps(nb), encoding="utf-8")
    assert duplicates.repair(course / "submitted" / "copied" / "hw1" / "hw1.ipynb") == ["encode"]
    nbgrader(course, "autograde", "hw1")
    nbgrader(course, "export")
    with (course / "grades.csv").open(encoding="utf-8") as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file) if row["assignment"] == "hw1"}
    assert scores == {"right": 10, "wrong": 6, "empty": 0, "copied": 10}
