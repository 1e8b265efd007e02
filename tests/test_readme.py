"""What the README promises: its commands are those of CI, its Python runs as written, its links and counts are true."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_commands_of_the_readme():
    install, _, test = blocks("bash")
    script = (ROOT / ".ci/run").read_text()
    lines = [line.strip() for line in script.splitlines()]
    assert install.strip() in lines and test.strip() in lines
    assert lines.index(install.strip()) < lines.index(test.strip())


def test_the_python_block_runs_as_written(tmp_path):
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 13
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn.png").stat().st_size > 2000 and "tensor" in done.stdout


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), f"README links to {target}, which does not exist"


def test_every_lesson_is_in_the_table():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.name}" in README


def test_the_core_is_as_short_as_it_says():
    core = ["transformer", "cache", "sampling", "heads", "condition", "gpt", "quantizers", "vqvae"]
    lines = sum(len((ROOT / f"minar/{name}.py").read_text().splitlines()) for name in core)
    said = int(re.search(r"about (\d+) lines", README)[1])
    assert abs(lines - said) < 0.1 * said, f"README says about {said} lines, the core has {lines}"
