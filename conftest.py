"""For pytest, before anything is collected: the size of a test run, and what to do where nbval is missing.

nbval runs the notebooks. Without it pytest would stop at the options in pyproject.toml, and nobody could run tests/.
"""

import os
import shutil

import pytest

os.environ.setdefault("MINAR_PROFILE", "smoke")  # here, because the kernels of the notebooks inherit it
if not shutil.which("nvidia-smi"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # without a GPU Triton's kernels can be interpreted, if it is there


def pytest_addoption(parser, pluginmanager):
    homework = parser.getgroup("homework", "grading, see docs/instructors.md: pytest -m hw1 --student=PATH")
    homework.addoption("--student", help="a .py file, a notebook, or a folder of them; together with -m hw1 or -m hw2")
    homework.addoption("--course", help="the course seed that the students' version was made with")
    homework.addoption("--hidden-seed", type=int, help="picks the shapes and numbers of the hidden tests")
    homework.addoption("--limit", type=float, help="seconds for each task of a submission")
    homework.addoption("--points", help="write the points into this file, as CSV")
    if not pluginmanager.hasplugin("nbval"):
        parser.addoption("--nbval-lax", action="store_true", help="ignored: nbval is not installed")
        parser.addoption("--nbval-current-env", action="store_true", help="ignored: nbval is not installed")
        parser.addoption("--nbval-cell-timeout", help="ignored: nbval is not installed")


def pytest_report_header(config):
    if not config.pluginmanager.hasplugin("nbval"):
        return "notebooks: NOT run, because nbval is missing. To run them too: pip install -e '.[course]'"
    return None


def pytest_configure(config):
    if (config.getoption("markexpr") in ("hw1", "hw2")) != bool(config.getoption("student")):
        raise pytest.UsageError("to grade say both, -m hw1 (or hw2) and --student=PATH (with =): docs/instructors.md")


def pytest_ignore_collect(collection_path, config):
    """With --student nothing but the grader is collected, without it everything else."""
    is_grader = collection_path.name == "test_student.py"
    return True if collection_path.is_file() and is_grader != bool(config.getoption("student")) else None
