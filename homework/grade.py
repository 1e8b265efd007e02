"""Grade homework without nbgrader: one file, or a folder of forty, into one table.

    python -m homework.grade hw1 SUBMISSIONS --course fall-2026 --hidden-seed 7391 --csv points.csv

`pytest -m hw1 --student SUBMISSIONS` does the same, one test for each task. A submission is a .py file, a notebook, or
a folder with adapters.py in it.
"""

import argparse
import csv
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from homework import rules, script
from homework.remote import Student

RULES = {"hw1": rules.FROM_SCRATCH, "hw2": rules.DELTA}
MAKERS = {"Cache", "RollbackCache"}  # classes: what they make stays with the submission
DIFFERENTIABLE = {"quantize"}
KINDS = (".ipynb", ".py")


@dataclass(frozen=True)
class Course:
    """What a grader knows and students do not: hidden_seed picks shapes and numbers. limit: seconds for each task."""

    name: str = "example"
    hidden_seed: int = 0
    limit: float = 30.0


@dataclass
class Result:
    """What one submission got: points and, where they are not full, the reason, by task."""

    student: str
    points: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.points.values())

    @property
    def notes(self) -> str:
        """Reasons in one line; the same reason once."""
        tasks: dict[str, list[str]] = {}
        for task, reason in self.reasons.items():
            tasks.setdefault(reason, []).append(task)
        lines = [f"{', '.join(names)}: {reason}" for reason, names in tasks.items()]
        if self.copied:
            lines.append(f"word for word the reference: {', '.join(self.copied)}")
        return "; ".join(lines)


def submissions(path: Path, hw: str) -> dict[str, Path]:
    """Name of the student -> file. path: one submission, a folder of them, or nbgrader's `submitted`.

    Raises ValueError where nothing can be graded.
    """
    if path.is_file() and path.suffix in KINDS:
        return {path.stem: path}
    if (path / "adapters.py").is_file():
        return {path.resolve().name: path / "adapters.py"}
    found = {}
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        inside = [child / "adapters.py", *(child / where / f"{hw}{kind}" for where in (hw, "") for kind in KINDS)]
        file = child if child.is_file() and child.suffix in KINDS else next((f for f in inside if f.is_file()), None)
        if file is not None and not child.name.startswith("."):
            found[child.stem if child.is_file() else child.name] = file
    if not found:
        raise ValueError(f"{path} holds no submission: a .py file, a notebook, or a folder of them was expected")
    return found


def grade(name: str, file: Path, hw: str, course: Course) -> Result:
    """Judge one submission, in a process of its own."""
    checks, result = script.checks(hw), Result(name)
    task = checks.task(course.name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = _as_python(file, hw, Path(folder))
            broken = rules.broken(file, RULES[hw])
        except ValueError as error:
            broken = str(error)
        with Student(file, RULES[hw], course.limit) as student:
            for what, (points, check, needs) in checks.CHECKS.items():
                reason = broken or _reason(student, check, needs, task, course.hidden_seed)
                result.points[what] = 0 if reason else points
                if reason:
                    result.reasons[what] = reason
        if result.total:
            result.copied = rules.copied(file, script.reference(hw, course.name))
    return result


def _as_python(file: Path, hw: str, folder: Path) -> Path:
    if file.suffix == ".py":
        return file
    plain = folder / f"{file.stem}.py"
    plain.write_text(script.answer(file, hw), encoding="utf-8")
    return plain


def _reason(student: Student, check, needs: tuple[str, ...], task, seed: int) -> str | None:
    """Why a task gets no points, or None. Whatever goes wrong in a check is the submission's fault."""
    try:
        with student.task():
            for one in (seed, seed + 1):
                check(*(_function(student, name) for name in needs), task, one)
    except NotImplementedError:
        return "to do"
    except Exception as error:
        return " ".join((str(error) or type(error).__name__).split())
    return None


def _function(student: Student, name: str):
    if name in MAKERS:
        return student.maker(name)
    return student.with_gradients(name) if name in DIFFERENTIABLE else student.function(name)


def grade_all(found: dict[str, Path], hw: str, course: Course, jobs: int = 2) -> list[Result]:
    """Judge many, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda item: grade(*item, hw, course), found.items()))


def table(results: Iterable[Result], width: int = 80) -> str:
    """One line a student: points of each task, the total, and what went wrong, cut at `width`."""
    results = list(results)
    names = list(results[0].points) if results else []
    wide = max([len(r.student) for r in results] + [7])
    lines = [f"{'student':{wide}}  " + "  ".join(names) + "  total  notes"]
    for r in results:
        points = "  ".join(f"{r.points[name]:>{len(name)}}" for name in names)
        notes = r.notes if len(r.notes) <= width else r.notes[: width - 4] + " ..."
        lines.append(f"{r.student:{wide}}  {points}  {r.total:>5}  {notes}".rstrip())
    return "\n".join(lines)


def write_csv(results: Iterable[Result], file: Path) -> None:
    """The table with notes in full length."""
    results = list(results)
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["student", *results[0].points, "total", "notes"])
        writer.writerows([r.student, *r.points.values(), r.total, r.notes] for r in results)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m homework.grade", description=__doc__.splitlines()[0])
    parser.add_argument("homework", choices=RULES)
    parser.add_argument("path", type=Path, help="a .py file, a notebook, a folder of them, or nbgrader's submitted/")
    parser.add_argument("--course", default=Course.name, help="the course seed of the students' version")
    parser.add_argument("--hidden-seed", type=int, default=Course.hidden_seed, help="yours alone")
    parser.add_argument(
        "--limit", type=float, default=Course.limit, help="seconds for each task (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="submissions at a time")
    parser.add_argument("--csv", type=Path, help="write the table here, too")
    options = parser.parse_args()
    try:
        found = submissions(options.path, options.homework)
    except ValueError as error:
        parser.error(str(error))
    course = Course(options.course, options.hidden_seed, options.limit)
    results = grade_all(found, options.homework, course, options.jobs)
    print(table(results))
    if options.csv:
        write_csv(results, options.csv)


if __name__ == "__main__":
    main()
