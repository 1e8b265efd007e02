"""What would break on another system than the one at hand, as far as it can be seen from here."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from minar import GPT, Transformer
from minar.cli import own_folder
from minar.lab import resume
from minar.lab.train import Run, fit

ROOT = Path(__file__).parent.parent
CODE = [path for folder in ("minar", "tools", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
FILES = [
    path.relative_to(ROOT)
    for folder in ("minar", "notebooks", "data", "tests", "tools", "bench", "docs")
    for path in (ROOT / folder).rglob("*")
    if not {"__pycache__", ".ipynb_checkpoints", "_build", "runs"} & set(path.parts)
]


def test_file_names_exist_on_every_system():
    reserved = re.compile(r'[:*?"<>|\\]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
    assert not [str(path) for path in FILES if any(reserved.search(part) for part in path.parts)]
    twice = [name for name, n in Counter(str(path).lower() for path in FILES).items() if n > 1]
    assert not twice, f"one file on Windows and macOS: {twice}"


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"\bnum_workers\b|\bDataLoader\b", "workers of a notebook do not start on Windows and macOS"),
        (r"\bos\.fork\b|set_start_method|\bsignal\.|import (resource|fcntl|pwd)\b", "Unix only"),
        (r"\.double\(\)\.(cpu|to)\(|\.to\(torch\.float64\)\.cpu", "Apple's GPU has no float64: move first"),
        (r"\.(read|write)_text\(\)", "reads or writes nothing, or in the system's own encoding"),
    ],
)
def test_the_code_keeps_away_from(pattern, why):
    allowed = {"log.py", "recipes.py"}  # json, which is ASCII
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in CODE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line) and not (path.name in allowed and "_text" in line)
    ]
    assert not found, f"{why}: {found}"


def test_the_folder_of_a_run_has_a_name_for_windows():
    assert own_folder("digits") == "runs/digits"
    assert own_folder("folder:my-pictures") == "runs/my-pictures"
    assert own_folder("folder:/some/where/pictures/") == "runs/pictures"
    assert own_folder("folder:.") == f"runs/{Path.cwd().name}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc what is mapped")
def test_a_run_that_goes_on_lets_go_of_its_file(tmp_path):
    """Tensors of a safetensors file are views of it, and Windows replaces no file that somebody looks into."""
    model = GPT(Transformer(32, 1, 2, hidden=32), 24, 3, (2, 2))
    data = torch.randint(24, (8, 4)), torch.randint(3, (8,))
    fit(model, data, 3, 4, device="cpu", out=tmp_path, progress=False)
    recipe = resume.checkpoint.read(tmp_path / resume.STATE)[1]["recipe"]
    run = Run(model, recipe)
    resume.restore(run, tmp_path / resume.STATE)
    assert run.step == 3 and run.optimizer.state, "nothing was restored: the test would prove nothing"
    assert resume.STATE not in Path("/proc/self/maps").read_text()
