"""Before nbgrader grades: make copied cells harmless, for one copied cell ends the whole `nbgrader autograde` run.

    python -m homework.duplicates COURSE_FOLDER/submitted

The last copy counts, which is nbgrader's own rule; the earlier ones become ordinary cells.
"""

import json
import sys
from pathlib import Path

from homework import script


def repair(path: Path) -> list[str]:
    """Take nbgrader's mark off all but the last of the cells with one id; which ids were there twice."""
    nb = json.loads(path.read_text(encoding="utf-8"))
    seen, twice = set(), []
    for cell in reversed(nb["cells"]):
        name = script.grade_id(cell)
        if name in seen:
            del cell["metadata"]["nbgrader"]
            twice.append(name)
        elif name is not None:
            seen.add(name)
    if twice:
        path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return twice


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("usage: python -m homework.duplicates COURSE_FOLDER/submitted")
    for path in sorted(Path(sys.argv[1]).rglob("*.ipynb")):
        twice = repair(path)
        if twice:
            print(f"{path}: {', '.join(twice)}")


if __name__ == "__main__":
    main()
