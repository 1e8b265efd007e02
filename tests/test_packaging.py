"""A wheel built from the sdist finds its data from anywhere. Needs the extra `dev`."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("build", reason="pip install -e '.[dev]' brings it")
ROOT = Path(__file__).parent.parent


def test_wheel_carries_the_data(tmp_path):
    run(sys.executable, "-m", "build", "--outdir", tmp_path, ROOT)  # the sdist first, then the wheel from it
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    code = "import minar; from minar.lab.shipped import shipped; print(minar.__file__, shipped('fashion-gpt').n_tokens)"
    said = run(sys.executable, "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    assert said.split() == [str(site / "minar" / "__init__.py"), "64"]


def run(*command, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
