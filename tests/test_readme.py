"""What the README promises: its commands are those of CI, its Python runs as written, its links and counts are true."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import count_lines  # noqa: E402

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


def test_the_reading_order_counts_right():
    assert len(count_lines.ROW.findall(README)) > 12 and count_lines.TOTAL.search(README)
    assert count_lines.counted(README) == README, "the code has changed: python tools/count_lines.py"
    stale = re.sub(r"\| \d[\d,]* \|$", "| 7 |", README, flags=re.MULTILINE)
    assert stale != README and count_lines.counted(stale) == README


def test_the_reading_order_is_complete():
    named = {path for row in count_lines.ROW.findall(README) for path in count_lines.targets(row[0])}
    files = {p for p in (ROOT / "minar").glob("*.py") if p.stem not in ("__init__", "cli", "checks")}
    folders = {p.parent for p in (ROOT / "minar").glob("*/__init__.py")}
    assert files | folders == named
