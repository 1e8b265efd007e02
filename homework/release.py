"""Make one course's homework: the students' version, and beside it what the instructor grades with.

    python -m homework.release --course fall-2026 --hidden-seed 7391 --out ../fall-2026 --last spring-2026

The folder is a course of nbgrader's: source/ with the hidden tests is yours, release/ is for students. plain/ is for
students without notebooks. Without nbgrader there is no release/.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from homework import grade, script

ALL = ("hw1", "hw2", "hw3")
HIDDEN = "seed=1234"  # what stands in the hidden tests of the sources


def make(course: str, hidden_seed: int, out: Path) -> None:
    """Write the course folder. Raises FileExistsError if there is one already: its grades may be in it."""
    out.mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "nbgrader_config.py", out)
    (out / "plain").mkdir()
    shutil.copy(Path(__file__).parent / "adapters_template.py", out / "plain")
    for hw in ALL:
        folder = out / "source" / hw
        folder.mkdir(parents=True)
        task = script.checks(hw).task(course)
        (folder / f"{hw}.ipynb").write_text(notebook(hw, task, hidden_seed), encoding="utf-8")
        checks = (script.SOURCE / hw / f"{hw}_checks.py").read_text(encoding="utf-8")
        checks = re.sub(r'^COURSE = ".*"$', f"COURSE = {course!r}", checks, flags=re.MULTILINE)
        (folder / f"{hw}_checks.py").write_text(checks, encoding="utf-8")
        shutil.copy(folder / f"{hw}_checks.py", out / "plain")
        (out / "plain" / f"{hw}.py").write_text(script.template(hw, course), encoding="utf-8")
        (out / "plain" / f"{hw}.md").write_text(script.text(hw, course), encoding="utf-8")


def notebook(hw: str, task, hidden_seed: int) -> str:
    """The instructor's notebook of one course: its task, its reference, its hidden seed."""
    nb = json.loads((script.SOURCE / hw / f"{hw}.ipynb").read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        text = task.text() if script.grade_id(cell) == "task" else script.for_course(script.source(cell), task)
        cell["source"] = text.replace(HIDDEN, f"seed={hidden_seed}").splitlines(keepends=True)
    return json.dumps(nb, indent=1, ensure_ascii=False) + "\n"


def generate(out: Path) -> bool:
    """Let nbgrader make release/ from source/. False if it is not installed."""
    if importlib.util.find_spec("nbgrader") is None:
        return False
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # nbgrader calls alembic
    for hw in ALL:
        command = [sys.executable, "-m", "nbgrader", "generate_assignment", hw, "--force"]
        done = subprocess.run(command, cwd=out, capture_output=True, text=True, env=os.environ | {"PATH": here})
        if done.returncode:
            raise RuntimeError(f"nbgrader generate_assignment {hw} failed:\n{done.stderr}")
    return True


def still_right(last: str, course: str) -> dict[str, list[str]]:
    """The tasks that the answers of another course solve, too, by homework: choose a course seed that has none."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for hw in grade.RULES:
            file = Path(folder) / f"{hw}.py"
            file.write_text(script.reference(hw, last), encoding="utf-8")
            points = grade.grade(last, file, hw, grade.Course(course, hidden_seed=0)).points
            found[hw] = [task for task, n in points.items() if n]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m homework.release", description=__doc__.splitlines()[0])
    parser.add_argument("--course", required=True, help="any word; it picks order, direction, seam and sizes")
    parser.add_argument("--hidden-seed", type=int, required=True, help="yours alone; picks hidden shapes")
    parser.add_argument("--out", type=Path, required=True, help="a new folder, outside of the repository")
    parser.add_argument("--last", help="the course seed of last time: says where its answers would still be right")
    options = parser.parse_args()
    try:
        make(options.course, options.hidden_seed, options.out)
    except FileExistsError:
        parser.error(f"{options.out} exists already: choose another folder, or remove it if no grades are in it")
    nbgrader = generate(options.out)
    print(f"for students: {options.out}/plain" + (f" and {options.out}/release" if nbgrader else ""))
    if not nbgrader:
        print("no notebooks for students, because nbgrader is missing: pip install -e '.[instructor]'")
    if options.last:
        for hw, tasks in still_right(options.last, options.course).items():
            print(f"{hw}: answers of {options.last} are right for {', '.join(tasks) or 'no task'}")


if __name__ == "__main__":
    main()
