"""Homework 2: what your course asks for, and the checks that judge it.

`python hw2_checks.py hw2.py` tries your file. Whoever grades runs the same checks with another seed.
"""

import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from minar import CategoricalHead, ClassLabel, NextStepAR, Plan, Transformer, laws, model_laws
from minar.plan import region_groups

COURSE = "example"
CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
SIDES = [("top left", "top right"), ("top left", "bottom left"), ("top right", "bottom right")]
SIDES += [("bottom left", "bottom right")]
ENDS = SIDES + [(b, a) for a, b in SIDES]  # of a Hilbert curve: two corners of one side of the square
SEAMS = [(per_side, turn) for per_side in (2, 3) for turn in range(per_side**2)]


@dataclass(frozen=True)
class Task:
    """What one course asks for; see `text`."""

    corner: str
    clockwise: bool
    inward: bool
    start: str
    end: str
    per_side: int
    turn: int
    keep: int
    from_the_end: bool

    def text(self) -> str:
        """The task in words, as Markdown."""
        hand = "clockwise" if self.clockwise else "counter-clockwise"
        spiral = f"starts at the **{self.corner}** corner and runs **inward, {hand}**"
        if not self.inward:
            spiral = f"runs **outward**: take the inward one that starts at the **{self.corner}** corner and turns "
            spiral += f"**{hand}**, and read it backwards"
        n = self.per_side**2
        reads = "the token of region j itself" if not self.turn else f"the token of region (j + {self.turn}) mod {n}"
        undo = "forgets the **last k** steps" if self.from_the_end else "forgets all **but the first k** steps"
        return f"""Your course asks for this:

- The **spiral** {spiral}.
- The **Hilbert curve** starts at the **{self.start}** and ends at the **{self.end}**.
- The **seam**: {self.per_side} x {self.per_side} regions, n = {n}. At the seam slot j reads **{reads}**.
- The **cache**: `rollback(k)` {undo}. At least **{self.keep} step{"s" * (self.keep > 1)}** must remain."""


def task(course: str) -> Task:
    """The task of a course, by its name."""
    start, end = _choice(course, "hilbert", ENDS)
    per_side, turn = _choice(course, "seam", SEAMS)
    keep, from_the_end = _choice(course, "cache", [(keep, end) for keep in (1, 2, 3) for end in (True, False)])
    return Task(
        corner=_choice(course, "corner", list(CORNERS)),
        clockwise=_choice(course, "hand", [True, False]),
        inward=_choice(course, "inward", [True, False]),
        start=start,
        end=end,
        per_side=per_side,
        turn=turn,
        keep=keep,
        from_the_end=from_the_end,
    )


def _choice(course: str, what: str, choices: list):
    """One of the choices, the same on every machine and in every version of Python."""
    number = int.from_bytes(hashlib.sha256(f"hw2 {what} {course}".encode()).digest()[:8], "big")
    return choices[number % len(choices)]


def check_spiral(spiral: Callable, task: Task, seed: int) -> None:
    """spiral(h, w) is a plan of one token a step: to a neighbour each time, never to an outer ring, one way round."""
    draw = random.Random(seed)
    for h, w in ((1, draw.randint(2, 5)), (draw.randint(2, 5), 1), (draw.randint(3, 5), draw.randint(6, 8)), (7, 4)):
        plan = _plan(spiral(h, w), h * w)
        assert plan.n_steps == h * w, f"spiral({h}, {w}) must draw one token a step"
        order = plan.pos if task.inward else plan.pos.flip(0)
        cells = [divmod(place, w) for place in order.tolist()]
        _check_corner(cells[0], task.corner, h, w, f"spiral({h}, {w})")
        rings = [min(r, c, h - 1 - r, w - 1 - c) for r, c in cells]
        assert rings == sorted(rings), f"spiral({h}, {w}) returns to a ring that it had left"
        ways = _check_neighbours(cells, f"spiral({h}, {w})")
        for (r, c), (r2, c2) in pairwise(ways):
            turn = r * c2 - c * r2  # on a screen rows count downward: -1 is a turn to the right
            assert turn in (0, -1 if task.clockwise else 1), f"spiral({h}, {w}) turns the wrong way"


def check_hilbert(hilbert: Callable, task: Task, seed: int) -> None:
    """hilbert(side, n) draws n equal stretches of the curve side by side; the first token of each is drawn alone."""
    draw = random.Random(seed)
    for side in (2, 4, 8, 16):
        N = side * side
        curve = _plan(hilbert(side, 1), N)
        assert curve.n_steps == N, f"hilbert({side}, 1) must draw one token a step"
        cells = [divmod(place, side) for place in curve.pos.tolist()]
        _check_corner(cells[0], task.start, side, side, f"hilbert({side}, 1)")
        _check_corner(cells[-1], task.end, side, side, f"read backwards hilbert({side}, 1)")
        _check_neighbours(cells, f"hilbert({side}, 1)")
        for part in (2**k for k in range(1, side.bit_length())):
            blocks = [[(r // part, c // part) for r, c in cells[i : i + part**2]] for i in range(0, N, part**2)]
            assert all(len(set(block)) == 1 for block in blocks), f"{part**2} tokens in a row must fill a square"
        n = draw.choice([n for n in (2, 4, 8, 16) if n < N])
        plan = _plan(hilbert(side, n), N)
        assert plan.sizes == (1,) * n + (n,) * (N // n - 1), f"hilbert({side}, {n}) has steps {plan.sizes}"
        stretches = [plan.permute(curve.pos.argsort()[None])[0, j::n] for j in range(n)]  # how far along the curve
        for j, stretch in enumerate(stretches):
            assert stretch.tolist() == list(range(j * N // n, (j + 1) * N // n)), f"stretch {j} of {n} is not in order"
    plan = hilbert(4, 4)
    model = _model(NextStepAR, (4, 4), seed)
    model_laws.check_no_twins(model, *_batch((4, 4), seed), plan)
    model_laws.check_decoding(model, _batch((4, 4), seed)[1], plan)


class SeamAR(NextStepAR):
    """A model whose slots read what the function `reads` says: see NextStepAR.read."""

    def __init__(self, *parts, reads: Callable):
        super().__init__(*parts)
        self.reads = reads

    def read(self, tokens: Tensor, prefix: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        x, rope = self.reads(self, tokens, prefix, plan, slots)
        shape = (len(prefix), slots.stop - slots.start, prefix.shape[2])
        assert x.shape == shape, f"read must give vectors {shape}, got {tuple(x.shape)}"
        return x, rope


def check_seam(read: Callable, task: Task, seed: int) -> None:
    """read(model, tokens, prefix, plan, slots): who reads whom is your course's seam, and the laws of models hold."""
    draw = random.Random(seed)
    h, w = draw.choice({2: [(4, 4), (4, 6), (6, 4)], 3: [(3, 9), (9, 3)]}[task.per_side])
    plan, (tokens, label) = region_groups(h, w, task.per_side), _batch((h, w), seed)
    model = _model(SeamAR, (h, w), seed, reads=read)
    _check_who_reads_whom(model, plan, task, label)
    for name in ("no_peeking", "every_token_counts", "no_twins", "cache", "guided_step", "nll"):
        getattr(model_laws, f"check_{name}")(model, tokens, label, plan)
    model_laws.check_decoding(model, label, plan)


@torch.no_grad()
def _check_who_reads_whom(model: SeamAR, plan: Plan, task: Task, label: Tensor) -> None:
    n, N = task.per_side**2, plan.n
    tokens = torch.arange(N).expand(len(label), N)  # all unlike: so it can be seen which one a slot reads
    x, rope = model.read(tokens, model.prefix(label), plan, slice(0, N))
    content = x - model.target(plan.pos)
    assert (content[:, 0] - model.prefix(label)[:, -1]).abs().max() <= 1e-4, "slot 0 must read the condition"
    apart = (content[0, :, None] - model.embed.weight[:N]).norm(dim=-1)  # (slot, token)
    reads = apart.argmin(1).tolist()
    for slot in range(1, N):
        assert apart[slot, reads[slot]] <= 1e-3, f"slot {slot} reads no token, or is not told its target"
    for slot in range(1, n):
        assert reads[slot] == slot - 1, f"before the seam slot {slot} must read slot {slot - 1}, not {reads[slot]}"
    for j in range(n):
        assert reads[n + j] == (j + task.turn) % n, f"slot {j} of the seam reads slot {reads[n + j]}: another region"
    for slot in range(2 * n, N):
        assert reads[slot] == slot - n, f"slot {slot} must read its own region's last token"
    stands = torch.tensor([-1, *plan.pos[torch.tensor(reads[1:])].tolist()])
    assert rope.shape == model.rope(stands).shape, f"the angles must be {tuple(model.rope(stands).shape)}"
    assert (rope - model.rope(stands)).abs().max() <= 1e-4, "the angles must be those of the places that are read"


def check_rollback(make: Callable, task: Task, seed: int) -> None:
    """make(max_len) is a cache that goes back by whole steps, and afterwards computes what the full pass computes."""
    laws.check_kv(make)
    draw = random.Random(seed)
    plan = region_groups(4, draw.choice([4, 6]), 2)
    model, (tokens, label) = _model(NextStepAR, (4, plan.n // 4), seed), _batch((4, plan.n // 4), seed)
    x, prefix = tokens[:, plan.pos], model.prefix(label)
    other = (x + 1) % 40
    for left in (task.keep, draw.randint(task.keep + 1, plan.n_steps - 2), plan.n_steps):
        cache = make(plan.n)
        with torch.no_grad():
            for s in range(plan.n_steps):
                model.hidden(x, prefix, plan, s, s + 1, cache)
            _check_back(cache, plan.starts, plan.n_steps, left, task)
            changed = torch.cat([x[:, : plan.starts[left]], other[:, plan.starts[left] :]], 1)
            full = model.hidden(changed, prefix, plan)
            for s in range(left, plan.n_steps):
                h = model.hidden(changed, prefix, plan, s, s + 1, cache)
                gap = float((h - full[:, plan.span(s)]).abs().max())
                assert gap <= 1e-4, f"after going back to {left} steps, step {s} differs from the full pass"
        assert cache.n == plan.n
        _check_back(cache, plan.starts, plan.n_steps, plan.n_steps - 1, task)
        _check_cut(cache, plan, draw.randint(task.keep + 1, plan.n_steps - 2), task)


def _check_back(cache, starts: tuple[int, ...], held: int, left: int, task: Task) -> None:
    """Going back from `held` to `left` steps; and it must not go where the course forbids."""
    before = cache.n
    for wrong in (task.keep - 1, -1, held + 1):
        try:
            cache.rollback(held - wrong if task.from_the_end else wrong)
        except ValueError:
            assert cache.n == before, "a rollback that is refused must change nothing"
            continue
        raise AssertionError(f"of {held} steps {wrong} would be left, and rollback did not raise ValueError")
    forgotten = cache.rollback(held - left if task.from_the_end else left)
    assert cache.n == starts[left], f"{left} steps are {starts[left]} slots, after rollback n says {cache.n}"
    assert forgotten == before - cache.n, f"{before - cache.n} slots were forgotten, rollback says {forgotten}"


def _check_cut(cache, plan: Plan, held: int, task: Task) -> None:
    """Lowering n by hand forgets steps, too: those that remain can be counted on."""
    cache.n = plan.starts[held]
    _check_back(cache, plan.starts, held, held - 1, task)


def _check_corner(cell: tuple[int, int], corner: str, h: int, w: int, what: str) -> None:
    down, right = CORNERS[corner]
    wanted = (down * (h - 1), right * (w - 1))
    assert cell == wanted, f"{what} must start at the {corner}, {wanted}; it starts at {cell}"


def _check_neighbours(cells: list[tuple[int, int]], what: str) -> list[tuple[int, int]]:
    """The ways from cell to cell, each of length one."""
    ways = [(r2 - r, c2 - c) for (r, c), (r2, c2) in pairwise(cells)]
    for i, (r, c) in enumerate(ways):
        assert abs(r) + abs(c) == 1, f"{what} jumps from {cells[i]} to {cells[i + 1]}"
    return ways


def _plan(plan: Plan, n: int) -> Plan:
    assert isinstance(plan, Plan), f"a Plan must be returned, got {type(plan).__name__}"
    assert plan.n == n, f"the plan must have {n} slots, got {plan.n}"
    model_laws.check_plan(plan)
    return plan


def _model(family: type, grid: tuple[int, int], seed: int, **more) -> NextStepAR:
    parts = Transformer(16, 2, 2, hidden=16), nn.Embedding(40, 16), ClassLabel(3, 16), CategoricalHead(16, 40)
    return laws.wake(family(*parts, grid, **more), seed)


def _batch(grid: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Tokens by position, (2, N), and two labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(40, (2, grid[0] * grid[1]), generator=generator), torch.tensor([0, 2])


CHECKS = {  # task -> points, check, and the functions it judges
    "spiral": (2, check_spiral, ("spiral",)),
    "hilbert": (3, check_hilbert, ("hilbert",)),
    "seam": (3, check_seam, ("read",)),
    "rollback": (2, check_rollback, ("RollbackCache",)),
}


def main(path: str) -> None:
    """Try a student's file with the seed that everybody knows."""
    import runpy

    from minar.lab.profile import exercise

    yours = runpy.run_path(path)
    for name, (points, check, needs) in CHECKS.items():
        print(f"{name} ({points} points): ", end="")
        try:
            exercise(check, *(yours[need] for need in needs), task(COURSE), 0)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
