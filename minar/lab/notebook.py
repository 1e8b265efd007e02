"""The code of a notebook as chained hashes, so that a stored output can be told from a stale one.

A notebook here is the plain dict of its JSON. The hash of a cell covers the code and tags of every code cell down to
it. Cells tagged `exercise` stay outside: they, and all text, may be edited without running anything again. The cell
tagged `colab`, which installs minar where it is missing (tools/colab.py), counts as text.

    python -m minar.lab.notebook notebooks

says what is wrong with stored outputs, without running anything: they were stripped, or made by other code.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

CHECKED = "nbval-check-output"  # pytest --nbval-lax compares the outputs of cells with this tag, and of no others


def source(cell: dict) -> str:
    """The text of a cell. The format allows a string or a list of lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def is_code(cell: dict) -> bool:
    """Code of the lesson, that is: the installing cell is the same everywhere, and no part of what is taught."""
    return cell["cell_type"] == "code" and "colab" not in tags(cell)


def is_hashed(cell: dict) -> bool:
    return is_code(cell) and "exercise" not in tags(cell)


def code_hashes(nb: dict) -> list[str | None]:
    """One hash (16 hex digits) for each cell as it is written now, None for text and exercises."""
    chain = hashlib.sha256()
    hashes = []
    for cell in nb["cells"]:
        if is_hashed(cell):
            chain.update(json.dumps([source(cell), sorted(tags(cell))]).encode())
            hashes.append(chain.hexdigest()[:16])
        else:
            hashes.append(None)
    return hashes


def stored_hashes(nb: dict) -> list[str | None]:
    """For each cell the hash that was written when its output was made, None for text, exercises and unrun cells."""
    return [cell["metadata"].get("minar", {}).get("hash") if is_hashed(cell) else None for cell in nb["cells"]]


def first_stale(nb: dict) -> int | None:
    """Index of the first cell whose output was made by other code than stands here, None if all are current."""
    pairs = zip(code_hashes(nb), stored_hashes(nb))
    return next((i for i, (now, stored) in enumerate(pairs) if now != stored), None)


def stored_faults(nb: dict) -> list[str]:
    """What is wrong with the stored outputs, in words, as far as that can be seen without running the notebook.

    nbval passes a notebook without outputs, and cells that nobody ran: that is found here.
    """
    faults = []
    if first_stale(nb) is not None:
        faults.append(f"cell {first_stale(nb)} is not the code that made its output: run tools/execute.py")
    for i, cell in enumerate(nb["cells"]):
        if not is_code(cell):
            continue
        if cell["execution_count"] is None:
            faults.append(f"cell {i} was never run")
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            faults.append(f"cell {i} stores an error")
        if CHECKED in tags(cell) and not prints_only(cell):
            faults.append(f"checked cell {i} must store printed text and nothing else")
    if "widgets" in nb["metadata"]:
        faults.append("it stores widgets, which nobody can see without a kernel")
    if nb["metadata"].get("kernelspec", {}).get("name") != "python3":
        faults.append("its kernel is not python3")
    return faults


def prints_only(cell: dict) -> bool:
    """Does it store printed text, and nothing that two machines draw differently?"""
    return bool(cell["outputs"]) and all(output.get("name") == "stdout" for output in cell["outputs"])


def find(places: list[Path]) -> list[Path]:
    """The notebooks among and below some files and folders; not those that Jupyter keeps as checkpoints."""
    below = [sorted(place.rglob("*.ipynb")) if place.is_dir() else [place] for place in places]
    return [path for paths in below for path in paths if ".ipynb_checkpoints" not in path.parts]


def main(argv: list[str] | None = None) -> int:
    """Print the faults of all notebooks; 0 if there are none, 1 if there are, 2 if there is no notebook."""
    parser = argparse.ArgumentParser(prog="python -m minar.lab.notebook", description=main.__doc__)
    parser.add_argument("places", nargs="*", type=Path, default=[Path("notebooks")], metavar="FILE or FOLDER")
    paths, wrong = find(parser.parse_args(argv).places), 0
    for path in paths:
        faults = stored_faults(json.loads(path.read_text(encoding="utf-8")))
        wrong += bool(faults)
        print(f"{path}: {'; '.join(faults) or 'ok'}")
    if not paths:
        print("no notebook found", file=sys.stderr)
        return 2
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
