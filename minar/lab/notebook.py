"""The code of a notebook as chained hashes, so that a stored output can be told from a stale one.

A notebook here is the plain dict of its JSON. The hash of a cell covers the code and tags of every code cell down to
it. Cells tagged `exercise` stay outside: they, and all text, may be edited without running anything again.
"""

import hashlib
import json


def source(cell: dict) -> str:
    """The text of a cell. The format allows a string or a list of lines."""
    text = cell["source"]
    return text if isinstance(text, str) else "".join(text)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def is_code(cell: dict) -> bool:
    return cell["cell_type"] == "code"


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
