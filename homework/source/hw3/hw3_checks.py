"""Homework 3: what your course asks for. It is judged by people, with the rubric of the notebook."""

import hashlib
from dataclasses import dataclass

COURSE = "example"
RIVALS = {
    "rows": "n tokens side by side: `rows(8, 8, n)`",
    "regions": "the same place of n regions: `region_groups(8, 8, side)`, n = side^2",
    "spread out": "n tokens spread out by Halton's sequence, first come first drawn: `halton(8, 8, (n,) * (64 // n))`",
}


@dataclass(frozen=True)
class Task:
    """n: tokens a step. rival: the order to be compared with, a key of RIVALS."""

    n: int
    rival: str

    def text(self) -> str:
        """The task in words, as Markdown."""
        return f"""Your course asks for this:

- **n = {self.n}** tokens are drawn together wherever your order allows it.
- The rival is **{self.rival}**: {RIVALS[self.rival]}."""


def task(course: str) -> Task:
    """The task of a course, by its name."""
    number = int.from_bytes(hashlib.sha256(f"hw3 {course}".encode()).digest()[:8], "big")
    choices = [(2, "rows"), (4, "rows"), (8, "rows"), (4, "regions"), (2, "spread out"), (4, "spread out")]
    return Task(*choices[number % len(choices)])
