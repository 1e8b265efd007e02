"""Put the installing cell into notebooks: what makes them run on Colab, and wherever minar is missing.

    python tools/colab.py notebooks
    python tools/colab.py notebooks --source "git+https://HOST/OWNER/REPO"
    python tools/colab.py notebooks --remove

The first puts it into every notebook there, or brings it up to date. It stands before the first cell of code and has
the tag `colab`. It is outside the hashes, is not counted, and stores no output (minar/lab/notebook.py), so it can be
put in, changed and taken out without running anything.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a checkout with nothing installed will do

from minar.lab.notebook import find, tags  # noqa: E402

SOURCE = ""  # what pip is asked for, unless MINAR_SOURCE in the environment says otherwise. "": nothing, as long as the
# package has no public address: a name that anybody may take must not run on readers' machines

# A folder called minar beside the notebook, such as a clone, is found as well, but has no origin: it is no package.
# The versions that are there are asked for by name, so that pip refuses rather than replaces them.
CELL = """\
# Where minar is missing, as on Colab, this installs it. The torch and numpy that are there stay as they are.
import os
from importlib.metadata import version
from importlib.util import find_spec

if not getattr(find_spec("minar"), "origin", None):
    source = os.environ.get("MINAR_SOURCE", "SOURCE")  # a folder, a wheel, a git address
    if not source:
        raise ModuleNotFoundError("minar is missing: let MINAR_SOURCE name a folder, a wheel or a git address of it")
    keep = " ".join(f"{name}=={version(name)}" for name in ("torch", "numpy"))
    %pip install -q "{source}" {keep}
"""


def main(argv: list[str] | None = None) -> int:
    """Change the notebooks named, and say which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, metavar="FILE or FOLDER")
    parser.add_argument("--source", default=SOURCE, help="what pip is asked for: a git address, a wheel, a name")
    parser.add_argument("--remove", action="store_true", help="take the cell out")
    args = parser.parse_args(argv)
    for path in find(args.places):
        old = path.read_text(encoding="utf-8")
        new = written(changed(json.loads(old), None if args.remove else args.source))
        if new != old:
            path.write_text(new, encoding="utf-8", newline="\n")
        print(f"{path}: {'as it was' if new == old else 'changed'}")
    return 0


def changed(nb: dict, source: str | None) -> dict:
    """The notebook with one installing cell, before its first cell of code; without any where source is None."""
    cells = [cell for cell in nb["cells"] if "colab" not in tags(cell)]
    first = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), None)
    if source is not None and first is not None:
        cells.insert(first, installing(source))
    return {**nb, "cells": cells}


def installing(source: str) -> dict:
    """The cell, as the format has it."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "colab",
        "metadata": {"jupyter": {"source_hidden": True}, "tags": ["colab", "remove-cell"]},  # folded; not on the site
        "outputs": [],
        "source": CELL.replace('SOURCE")', f'{source}")').rstrip().splitlines(keepends=True),
    }


def written(nb: dict) -> str:
    """The text of a notebook, as nbformat writes it."""
    return json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True, separators=(",", ": ")) + "\n"


if __name__ == "__main__":
    sys.exit(main())
