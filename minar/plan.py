"""A plan says which tokens are predicted together, and when: a list of steps, each a set of positions.

Tokens are put into the plan's order once; from then on they stand in *slots*, and every step is a contiguous slice.
Mask, cache, loss and the decoding loop follow from the plan. What a slot reads is the model's business.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from minar.checks import check_number, check_plan
from minar.transformer import Mask


@dataclass(frozen=True, eq=False)
class Plan:
    """pos: (N,) or (B, N) long, slot -> position on the grid, counted row by row. sizes: slots of each step.

    A (B, N) `pos` gives each row of the batch an order of its own. Raises ValueError unless each row of `pos` holds
    0 .. N-1 once each, and `sizes` are positive and add up to N.
    """

    pos: Tensor
    sizes: tuple[int, ...]
    n: int = field(init=False)
    n_steps: int = field(init=False)
    starts: tuple[int, ...] = field(init=False)  # n_steps + 1 entries: the first slot of each step, and N
    step: Tensor = field(init=False)  # (N,) long, slot -> step
    reads_from: Tensor | None = field(init=False)
    # (N,) long: slot j of step s reads slot j mod n of the step before, which has n; -1 reads the condition.
    # None where a step is smaller than the one before: some tokens would never be read.

    def __post_init__(self):
        check_plan(self.pos, self.sizes)
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        step = [s for s, size in enumerate(self.sizes) for _ in range(size)]
        grows = all(a <= b for a, b in zip(self.sizes, self.sizes[1:]))
        reads = [-1] * self.sizes[0]
        for s in range(1, len(self.sizes)):
            reads += [starts[s - 1] + j % self.sizes[s - 1] for j in range(self.sizes[s])]
        device = self.pos.device
        derived = {
            "sizes": tuple(self.sizes),
            "n": starts[-1],
            "n_steps": len(self.sizes),
            "starts": tuple(starts),
            "step": torch.tensor(step, device=device),
            "reads_from": torch.tensor(reads, device=device) if grows else None,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def span(self, s: int) -> slice:
        """The slots of step s."""
        return slice(self.starts[s], self.starts[s + 1])

    def mask(self, a: int, b: int, n_mute: int = 0) -> Mask:
        """Who looks at whom: a slot sees every slot of its own step and of the steps before.

        Rows are slots a .. b-1, columns slots 0 .. b-1. n_mute slots before slot 0 predict nothing and are seen by
        all; they are columns, and rows as well if a is 0. Returns None (all see all), "causal", or a bool tensor.
        """
        mute_rows = n_mute if a == 0 else 0
        if not mute_rows and not any(a < start < b for start in self.starts):
            return None  # one step, and everything before it is known
        if not mute_rows and self.n_steps == self.n:
            return "causal"
        step = torch.cat([self.step.new_full((n_mute,), -1), self.step[:b]])
        rows = step if a == 0 else self.step[a:b]
        return rows[:, None] >= step

    def permute(self, x: Tensor) -> Tensor:
        """(B, N, ...) by position -> (B, N, ...) by slot."""
        return x[:, self.pos] if self.pos.dim() == 1 else x[_rows(self.pos), self.pos]

    def unpermute(self, x: Tensor) -> Tensor:
        """(B, N, ...) by slot -> (B, N, ...) by position."""
        slot = self.pos.argsort(-1)
        return x[:, slot] if slot.dim() == 1 else x[_rows(slot), slot]

    def check_one_by_one(self) -> None:
        """Raise ValueError unless each step is one token: only then is there something to guess and verify."""
        if self.n_steps != self.n:
            raise ValueError("guess and verify needs a plan of one token a step, such as raster")

    def at(self, slots: slice | Tensor) -> Tensor:
        """The positions of T slots: (T,), or (B, T) where each row has its own order. A slot of -1 stands at -1."""
        if isinstance(slots, slice):
            return self.pos[..., slots]
        return torch.where(slots < 0, -1, self.pos[..., slots])

    def to(self, device: torch.device | str) -> "Plan":
        """The same plan on another device."""
        return self if self.pos.device == torch.device(device) else Plan(self.pos.to(device), self.sizes)

    def clone(self) -> "Plan":
        """A copy with memory of its own."""
        return self._with(self.pos.clone())

    def copy_(self, other: "Plan") -> "Plan":
        """Take the order of another plan with the same steps, in place: a recorded CUDA graph reads this memory."""
        if other.sizes != self.sizes:
            raise ValueError(f"a plan with steps {other.sizes} does not fit into one with steps {self.sizes}")
        self.pos.copy_(other.pos)
        return self

    def repeat(self, k: int) -> "Plan":
        """For a batch that is stacked k times, as guidance does: per-row orders are stacked, too."""
        return self if self.pos.dim() == 1 else self._with(self.pos.repeat(k, 1))

    def _with(self, pos: Tensor) -> "Plan":
        """The same steps in orders that are known to be orders: nothing is checked, nothing waits for the device."""
        plan = object.__new__(Plan)
        for name, value in vars(self).items():
            object.__setattr__(plan, name, pos if name == "pos" else value)
        return plan


def _rows(pos: Tensor) -> Tensor:
    return torch.arange(len(pos), device=pos.device)[:, None]


def raster(h: int, w: int) -> Plan:
    """Row by row from the top left, one token a step."""
    return Plan(torch.arange(_area(h, w)), (1,) * (h * w))


def rows(h: int, w: int, n: int) -> Plan:
    """Raster order, n neighbours a step: what goes wrong when tokens that depend on each other are drawn together."""
    if n < 1 or _area(h, w) % n:
        raise ValueError(f"{h}x{w} tokens cannot be cut into steps of {n}")
    return Plan(torch.arange(h * w), (n,) * (h * w // n))


def region_groups(h: int, w: int, per_side: int) -> Plan:
    """PAR's order: the grid is cut into per_side^2 regions, and one step draws the same place in each of them.

    The first token of each region is drawn alone, since the first tokens set the scene: N/n + n - 1 steps for n
    regions. per_side=2 is PAR-4x, 4 is PAR-16x. Wang et al., "Parallelized Autoregressive Visual Generation", 2024.
    """
    check_number("per_side", per_side, 1)
    _area(h, w)
    if h % per_side or w % per_side:
        raise ValueError(f"a {h}x{w} grid does not split into {per_side}x{per_side} regions: choose a divisor")
    place = torch.arange(h * w).view(per_side, h // per_side, per_side, w // per_side)
    n = per_side**2
    return Plan(place.permute(1, 3, 0, 2).flatten(), (1,) * n + (n,) * (h * w // n - 1))


def random_order(h: int, w: int, batch: int | None = None, generator: torch.Generator | None = None) -> Plan:
    """A random order, one token a step; `batch`: one for each row."""
    return Plan(_shuffled(_area(h, w), batch, generator), (1,) * (h * w))


def random_sets(
    h: int, w: int, n_steps: int, batch: int | None = None, generator: torch.Generator | None = None
) -> Plan:
    """A random order in n_steps steps that grow as MaskGIT's do (`cosine_sizes`)."""
    return Plan(_shuffled(_area(h, w), batch, generator), cosine_sizes(h * w, n_steps))


def scales(sides: tuple[int, ...]) -> Plan:
    """VAR's order: square grids of growing side, one a step. Positions are counted from the smallest grid on."""
    if not sides or list(sides) != sorted(set(sides)) or sides[0] < 1:
        raise ValueError(f"the sides of the grids must grow, got {tuple(sides)}")
    sizes = tuple(side**2 for side in sides)
    return Plan(torch.arange(sum(sizes)), sizes)


def halton(h: int, w: int, steps: int | tuple[int, ...]) -> Plan:
    """Spread out: positions follow the 2-D Halton sequence, base 2 for rows and 3 for columns, so that the tokens of a
    step stand far apart.

    steps: their number, with sizes that grow as the share arccos leaves (256 in 8: 20 21 21 23 25 28 35 83), or the
    sizes themselves. Besnier et al., "Halton Scheduler for Masked Generative Image Transformer", 2025.
    """
    n = _area(h, w)
    sizes = _sizes(n, steps, lambda t: math.ceil(n * _arccos(t))) if isinstance(steps, int) else steps
    seen = {}  # as an ordered set: small grids are hit many times over
    index = 1
    while len(seen) < n:
        seen[math.floor(h * _mirror(index, 2)) * w + math.floor(w * _mirror(index, 3))] = None
        index += 1
    return Plan(torch.tensor(list(seen)), sizes)


def completing(
    known: Tensor,
    steps: int | tuple[int, ...],
    generator: torch.Generator | None = None,
    order: Plan | None = None,
) -> Plan:
    """For in- and outpainting: the first step is what is known, the rest follows at random, or as in `order`.

    known: (N,) bool, by position. steps: how many are drawn (`cosine_sizes`), or their sizes. order: any plan of the
    grid, of which only `pos` counts. Decode with generate(..., prompt=tokens, prompt_steps=1). Raises TypeError or
    ValueError for a mask that is not one, is empty or full, an order of another grid, or steps that do not fit.
    """
    if not isinstance(known, Tensor) or known.dtype != torch.bool or known.dim() != 1:
        kind = f"{known.dtype} {tuple(known.shape)}" if isinstance(known, Tensor) else type(known).__name__
        raise TypeError(f"known must be a tensor of torch.bool, (N,), got {kind}")
    n, n_known = len(known), len(known[known])
    if not 0 < n_known < n:
        raise ValueError(f"{n_known} of {n} tokens are known: some must be, and some must be left to draw")
    pos = _shuffled(n, None, generator) if order is None else order.pos
    if pos.shape[-1] != n:
        raise ValueError(f"the order is of a grid of {pos.shape[-1]} tokens, known has {n}")
    pos = pos.gather(-1, (~known)[pos].byte().argsort(dim=-1, stable=True))  # the known ones first
    return Plan(pos, (n_known, *(cosine_sizes(n - n_known, steps) if isinstance(steps, int) else steps)))


def cosine_sizes(n: int, n_steps: int) -> tuple[int, ...]:
    """How many tokens each step draws if the share still hidden falls along a cosine, at least one: 256 in 8 steps are
    5 15 24 31 39 45 48 49. Chang et al., "MaskGIT", 2022.
    """
    return _sizes(n, n_steps, lambda t: math.floor(n * math.cos(math.pi / 2 * t)))


def arccos_sizes(n: int, n_steps: int) -> tuple[int, ...]:
    """As `cosine_sizes`, along an arc cosine: nearly even, then a large last step. 256 in 8 steps are
    21 21 21 23 25 28 35 82. Li et al., "ARPG", 2025, and MaskGIL.
    """
    return _sizes(n, n_steps, lambda t: math.floor(n * _arccos(t)))


def _sizes(n: int, n_steps: int, hidden: Callable[[float], int]) -> tuple[int, ...]:
    """Sizes of steps of which hidden(t) tokens are left after the share t of the steps."""
    if not 1 <= n_steps <= n:
        raise ValueError(f"{n} tokens can be drawn in 1 to {n} steps, not in {n_steps}")
    sizes, left = [], n
    for s in range(1, n_steps + 1):
        target = max(n_steps - s, min(left - 1, hidden(s / n_steps)))  # at least one now, and one for each step to come
        sizes.append(left - target)
        left = target
    return tuple(sizes)


def _arccos(t: float) -> float:
    """Falls from 1 at t = 0 to 0 at t = 1."""
    return math.acos(t) / (math.pi / 2)


def _mirror(index: int, base: int) -> Fraction:
    """The digits of `index` reversed, behind the point: 6 is 110 in base 2 and becomes 0.011 = 3/8."""
    value, unit = Fraction(0), Fraction(1, base)
    while index:
        index, digit = divmod(index, base)
        value += digit * unit
        unit /= base
    return value


def _shuffled(n: int, batch: int | None, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    shape = (n,) if batch is None else (batch, n)
    return torch.rand(shape, generator=generator, device=device).argsort(-1)


def _area(h: int, w: int) -> int:
    if h < 1 or w < 1:
        raise ValueError(f"a grid needs at least one row and one column, got {h}x{w}")
    return h * w
