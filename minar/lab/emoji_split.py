"""Which emoji are held out for testing: a tenth of each category, and near-twins always on one side."""

import hashlib
import re

# Drawings of these subcategories differ by one detail: a clock's hands, a key's sign, a colour, a haircut.
ONE_DRAWING = {"time", "keycap", "zodiac", "heart", "geometric", "cat-face", "punctuation", "person", "phone", "lock"}
# Words that name a variant of a drawing, not another drawing.
VARIANT = (
    "man men woman women person people boy girl old older deaf pregnant face red orange yellow green blue purple brown "
    "black white grey light dark small medium large up down left right new full first last quarter waxing waning "
    "crescent gibbous oncoming incoming s with in of the"
)


def held_out(meta: list[dict]) -> set[int]:
    """The concepts (positions in emoji_meta.json) of the test split. They depend on the words alone, not on a seed."""
    families, sizes = {}, {}
    for concept, entry in enumerate(meta):
        families.setdefault((entry["category"], family(entry)), []).append(concept)
        sizes[entry["category"]] = sizes.get(entry["category"], 0) + 1

    held, taken = set(), dict.fromkeys(sizes, 0)
    for key in sorted(families, key=_shuffled):
        category, members = key[0], families[key]
        if taken[category] + len(members) <= 0.1 * sizes[category]:
            taken[category] += len(members)
            held.update(members)
    return held


def family(entry: dict) -> str:
    """What near-twins have in common: "man health worker" and "woman health worker" meet in "person-role health"."""
    if entry["subcategory"] in ONE_DRAWING:
        return entry["subcategory"]
    words = re.findall(r"\w+", entry["label"].lower())
    return entry["subcategory"] + " " + next((w for w in words if w not in VARIANT.split()), "")


def _shuffled(key: tuple[str, str]) -> bytes:
    # A hash, because it gives the same order on every machine and does not move when concepts are added.
    return hashlib.sha256("/".join(key).encode()).digest()
