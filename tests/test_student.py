"""The grader as tests: pytest -m hw1 --student=PATH. One test for each task of each submission, and a table at the end.

Not part of a test run without --student. What it grades with is homework/grade.py.
"""

from pathlib import Path

import pytest

from homework import grade, script


class Points:
    """The results so far, and the table that pytest prints when it is done."""

    def __init__(self, config: pytest.Config):
        self.results: dict[tuple[str, str], grade.Result] = {}
        self.csv = config.getoption("points")
        given = {"name": "course", "hidden_seed": "hidden_seed", "limit": "limit"}
        given = {field: config.getoption(option) for field, option in given.items()}
        self.course = grade.Course(**{field: value for field, value in given.items() if value is not None})

    def of(self, hw: str, name: str, file: Path) -> grade.Result:
        if (hw, name) not in self.results:
            self.results[hw, name] = grade.grade(name, file, hw, self.course)
        return self.results[hw, name]

    def pytest_terminal_summary(self, terminalreporter):
        if self.results:
            terminalreporter.section(f"points, course {self.course.name}")
            terminalreporter.write_line(grade.table(self.results.values()))
            if self.csv:
                grade.write_csv(self.results.values(), Path(self.csv))


def pytest_generate_tests(metafunc):
    """Every submission and every task of the homework that -m names."""
    config, hw = metafunc.config, metafunc.function.__name__.removeprefix("test_")
    if config.getoption("markexpr") != hw:
        return
    try:
        found = grade.submissions(Path(config.getoption("student")), hw)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    points = Points(config)
    config.pluginmanager.register(points, "points")
    cases = [(points, name, file, task) for name, file in found.items() for task in script.checks(hw).CHECKS]
    metafunc.parametrize("points, name, file, task", cases, ids=[f"{name}-{task}" for _, name, _, task in cases])


@pytest.mark.hw1
def test_hw1(points, name, file, task):
    judge("hw1", points, name, file, task)


@pytest.mark.hw2
def test_hw2(points, name, file, task):
    judge("hw2", points, name, file, task)


def judge(hw: str, points: Points, name: str, file: Path, task: str) -> None:
    reason = points.of(hw, name, file).reasons.get(task)
    if reason:
        pytest.fail(reason, pytrace=False)
