"""Writes the numbers of lines into the README's reading order: python tools/count_lines.py

A row of that table begins with the files it is about; its last cell is the number of their lines.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(r"^(\|(?: \[[\w/]+(?:\.py|/)\]\(minar/[\w/.]+\),?)+ \|.*\| )([\d,]+)( \|)$", re.MULTILINE)
TOTAL = re.compile(r"(about )(\d+)( lines up to `vqvae`)")
CORE = ("transformer", "cache", "sampling", "heads", "cross_entropy", "condition", "gpt", "quantizers", "tf32", "vqvae")


def lines(path: Path) -> int:
    """Of a file, or of all Python files in a folder."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def counted(text: str) -> str:
    """The README with the numbers that are true now."""
    rows = ROW.sub(lambda row: row[1] + f"{sum(map(lines, targets(row[1]))):,}" + row[3], text)
    core = round(sum(lines(ROOT / f"minar/{name}.py") for name in CORE), -1)
    return TOTAL.sub(lambda said: said[1] + str(core) + said[3], rows)


def targets(row: str) -> list[Path]:
    return [ROOT / name for name in re.findall(r"\]\((minar/[\w/.]+)\)", row.split(" | ")[0])]


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(counted(readme.read_text(encoding="utf-8")), encoding="utf-8")
