"""The files that set things up agree with each other, and the package stays small and quick to import."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_is_a_thin_shell_around_pyproject():
    text = (ROOT / "environment.yml").read_text()
    entries = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip().startswith("- ")]
    python, pip, nested, constraint, editable = entries
    assert pip == "pip" and nested == "pip:"
    low = tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))
    assert low <= tuple(map(int, python.removeprefix("python=").split("."))) <= (3, 14)
    assert constraint == "-c constraints.txt" and (ROOT / "constraints.txt").exists()
    extra = re.fullmatch(r"-e \.\[(\w+)\]", editable)[1]
    assert extra in PROJECT["optional-dependencies"]


def test_constraint_is_within_the_range():
    pinned = tuple(map(int, (ROOT / "constraints.txt").read_text().strip().removeprefix("torch==").split(".")))
    (torch,) = (d for d in PROJECT["dependencies"] if d.startswith("torch"))
    low, high = re.fullmatch(r"torch>=([\d.]+),<([\d.]+)", torch).groups()
    assert tuple(map(int, low.split("."))) <= pinned < tuple(map(int, high.split(".")))


def test_shipped_files_stay_within_their_budget():
    sizes = {p.name: p.stat().st_size / 1e6 for p in (ROOT / "data").glob("*.safetensors")}
    assert {"judge.safetensors", "fashion-vqvae.safetensors", "fashion-gpt.safetensors"} <= sizes.keys()
    assert sum(sizes.values()) <= 30, f"30 MB for the whole course: {sizes}"


def test_importing_minar_costs_little_more_than_torch():
    """Counted in modules, which is exact; `python -m bench import` measures the seconds."""
    code = "import sys, torch; before = set(sys.modules); import minar; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    foreign = {name.split(".")[0] for name in done.stdout.split()} - {"minar"}
    heavy = foreign & {"matplotlib", "PIL", "safetensors", "IPython", "pandas", "scipy"}
    assert not heavy, f"import minar pulls in {heavy}"
    assert not any(name.startswith("minar.lab") for name in done.stdout.split()), "the core must not import the lab"


@pytest.mark.skipif(os.name == "nt", reason="the script is for Unix shells")
def test_ci_script_can_be_run():
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / ".ci/run"]).returncode == 0
