"""Plans: every position once, the mask that follows, and the numbers that papers print."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import OFFICIAL

from minar import Plan, model_laws
from minar.plan import (
    arccos_sizes,
    completing,
    cosine_sizes,
    halton,
    random_order,
    random_sets,
    raster,
    region_groups,
    rows,
    scales,
)

SIDES = st.integers(1, 6)


@st.composite
def plans(draw, shrinking=True):
    """Any plan: named ones, and random sizes in random orders, one for all or one for each of 3 rows."""
    h, w = draw(SIDES), draw(SIDES)
    kind = draw(st.sampled_from(["raster", "regions", "rows", "sets", "scales", "halton", "completing", "any"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    batch = draw(st.sampled_from([None, 3]))
    if kind == "raster":
        return raster(h, w)
    if kind == "regions":
        per_side = draw(st.integers(1, 3))
        return region_groups(h * per_side, w * per_side, per_side)
    if kind == "rows":
        n = draw(st.sampled_from([n for n in range(1, h * w + 1) if h * w % n == 0]))
        return rows(h, w, n)
    if kind == "scales":
        return scales(tuple(sorted(draw(st.sets(SIDES, min_size=1)))))
    if kind == "halton" and shrinking:
        return halton(h, w, draw(st.integers(1, h * w)))
    if kind == "completing" and shrinking and h * w > 1:
        known = torch.arange(h * w) < draw(st.integers(1, h * w - 1))
        order = random_order(h, w, batch, generator)
        return completing(known.flip(0), draw(st.integers(1, int((~known).sum()))), generator, order)
    if kind == "sets" and shrinking:
        return random_sets(h, w, draw(st.integers(1, h * w)), batch, generator)
    order, cuts = random_order(h, w, batch, generator), draw(st.sets(st.integers(1, h * w)))
    ends = [0, *sorted(cuts - {h * w}), h * w]
    sizes = [b - a for a, b in pairwise(ends)]
    return Plan(order.pos, tuple(sizes if shrinking else sorted(sizes)))


@given(plan=plans())
@settings(max_examples=300, deadline=None)
def test_law(plan):
    model_laws.check_plan(plan)


def test_region_order_is_the_official_one():
    plan, told = region_groups(4, 4, 2), OFFICIAL["par"]
    assert plan.pos.tolist() == told["perm"]
    # the official sequence holds the transition tokens, too: 16 + 3 + 1 places, of which the last is never a row
    visible = [int(row.nonzero().max()) for row in plan.mask(0, 16)]
    assert visible == told["mask_rows_visible_upto"][:16]


@pytest.mark.parametrize(
    ("side", "per_side", "steps"), [(24, 2, 147), (24, 4, 51), (16, 2, 67), (16, 4, 31), (8, 2, 19), (24, 1, 576)]
)
def test_steps_of_region_groups(side, per_side, steps):
    assert region_groups(side, side, per_side).n_steps == steps


SCHEDULES = {  # of 256 tokens, by the released code of ARPG
    ("arccos", 8): "21 21 21 23 25 28 35 82",
    ("arccos", 16): "11 10 10 11 10 11 11 12 12 13 13 15 16 19 25 57",
    ("arccos", 32): "6 5 5 5 5 5 5 6 5 5 6 5 6 5 6 6 6 6 6 7 6 7 7 8 8 8 9 10 11 14 17 40",
    (
        "arccos",
        64,
    ): "3 3 2 3 2 3 2 3 2 3 3 2 3 2 3 3 2 3 3 2 3 3 2 3 3 3 2 3 3 3 3 3 3 3 3 3 3 3 3 4 3 3 4 3 4 3 4 4 4 4 4 4 5 "
    "4 5 5 6 5 7 7 7 10 12 28",
    (
        "arccos",
        128,
    ): "2 1 1 2 1 1 1 2 1 1 2 1 1 1 2 1 1 1 2 1 1 2 1 1 2 1 1 1 2 1 1 2 1 1 2 1 1 2 1 1 2 1 1 2 1 1 2 1 2 1 1 2 1 "
    "1 2 1 2 1 2 1 1 2 1 2 1 2 1 2 1 2 1 2 1 2 2 1 2 1 2 2 1 2 1 2 2 2 1 2 2 2 1 2 2 2 2 2 2 2 2 2 2 2 2 2 2 3 "
    "2 2 3 2 3 2 3 3 2 3 3 4 3 4 3 4 5 5 5 7 8 20",
    ("cosine", 8): "5 15 24 31 39 45 48 49",
    ("cosine", 16): "2 3 7 8 11 13 15 16 19 20 22 23 23 25 24 25",
    ("cosine", 32): "1 1 1 2 3 4 3 5 5 6 6 7 7 8 8 8 10 9 10 10 11 11 11 12 11 12 12 13 12 12 13 12",
    (
        "cosine",
        64,
    ): "1 1 1 1 1 1 1 1 1 1 1 1 1 2 3 2 2 3 3 3 3 3 3 4 3 4 4 4 4 4 4 4 5 5 4 5 5 5 5 5 6 5 5 6 5 6 6 6 5 6 6 6 6 "
    "6 6 7 6 6 6 6 7 6 6 6",
    (
        "cosine",
        128,
    ): "1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 "
    "2 2 2 2 2 2 2 2 2 2 2 3 2 2 3 2 2 3 2 3 2 2 3 3 2 3 2 3 3 2 3 3 2 3 3 3 2 3 3 3 3 3 3 2 3 3 3 3 3 3 3 3 3 "
    "3 3 3 3 3 4 3 3 3 3 3 3 3 3 4 3 3 3 3 3 3 3",
}


@pytest.mark.parametrize(("schedule", "n_steps"), SCHEDULES)
def test_sizes_are_the_official_ones(schedule, n_steps):
    sizes = {"cosine": cosine_sizes, "arccos": arccos_sizes}[schedule](256, n_steps)
    assert " ".join(map(str, sizes)) == SCHEDULES[schedule, n_steps]


@given(n=st.integers(1, 300), data=st.data(), schedule=st.sampled_from([cosine_sizes, arccos_sizes]))
@settings(max_examples=200, deadline=None)
def test_sizes_fit(n, data, schedule):
    k = data.draw(st.integers(1, n))
    sizes = schedule(n, k)
    assert sum(sizes) == n and len(sizes) == k and min(sizes) >= 1


@pytest.mark.parametrize("make", [cosine_sizes, arccos_sizes, lambda n, k: halton(2, n // 2, k)])
@pytest.mark.parametrize("n_steps", [0, -1, 9])
def test_no_more_steps_than_tokens(make, n_steps):
    with pytest.raises(ValueError, match=f"8 tokens can be drawn in 1 to 8 steps, not in {n_steps}"):
        make(8, n_steps)


def test_halton_is_the_sequence():
    """The first points are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), of height and width."""
    points = [divmod(p, 9) for p in halton(8, 9, 4).pos[:5].tolist()]
    assert points == [(4, 3), (2, 6), (6, 1), (1, 4), (5, 7)]
    assert divmod(int(halton(3, 5, (1, 14)).pos[0]), 5) == (1, 1), "rounded down"


@pytest.mark.parametrize("n_steps", [8, 16, 32])
def test_halton_takes_the_official_steps(n_steps):
    totals = [0]
    for i in range(n_steps):
        totals.append(max(i + 1, int((1 - math.acos((i + 1) / n_steps) / (math.pi / 2)) * 256)))
    assert halton(16, 16, n_steps).sizes == tuple(b - a for a, b in pairwise(totals))


def test_halton_steps_are_spread_out():
    """Of the first 16 tokens of a 16 x 16 grid no two touch, and no quarter holds more than five: rare at random."""

    def apart(pos):
        place = torch.stack([pos[:16] // 16, pos[:16] % 16], -1).float()
        return float((torch.cdist(place, place) + 99 * torch.eye(16)).min())

    pos = halton(16, 16, 16).pos
    quarter = pos[:16] // 128 * 2 + pos[:16] % 16 // 8
    assert apart(pos) >= 2 and quarter.bincount(minlength=4).max() <= 5
    assert sum(apart(random_order(16, 16, generator=torch.Generator().manual_seed(s)).pos) >= 2 for s in range(50)) < 5


KNOWN = torch.tensor([False, True, True, False, False, True])


def test_completing_starts_with_what_is_known():
    plan = completing(KNOWN, (1, 2), torch.Generator().manual_seed(0))
    assert plan.sizes == (3, 1, 2) and sorted(plan.pos[:3].tolist()) == [1, 2, 5]
    assert completing(KNOWN, 2, torch.Generator().manual_seed(0)).sizes == (3, *cosine_sizes(3, 2))
    orders = {tuple(completing(KNOWN, 3, torch.Generator().manual_seed(s)).pos[3:].tolist()) for s in range(50)}
    assert len(orders) == 6, "the rest comes in any order"


def test_completing_may_follow_an_order():
    assert completing(KNOWN, 3, order=raster(2, 3)).pos.tolist() == [1, 2, 5, 0, 3, 4]
    order = random_order(2, 3, 4, torch.Generator().manual_seed(0))
    plan = completing(KNOWN, 3, order=order)
    for row, wanted in zip(plan.pos.tolist(), order.pos.tolist()):
        assert row[3:] == [p for p in wanted if not KNOWN[p]]


@pytest.mark.parametrize(
    ("known", "arguments", "error", "says"),
    [
        (torch.zeros(6).bool(), {"steps": 2}, ValueError, "0 of 6 tokens are known"),
        (torch.ones(6).bool(), {"steps": 2}, ValueError, "6 of 6 tokens are known"),
        (KNOWN.long(), {"steps": 2}, TypeError, r"torch.bool, \(N,\), got torch.int64 \(6,\)"),
        (KNOWN[None], {"steps": 2}, TypeError, r"torch.bool, \(N,\), got torch.bool \(1, 6\)"),
        (None, {"steps": 2}, TypeError, "got NoneType"),
        (KNOWN, {"steps": 4}, ValueError, "3 tokens can be drawn in 1 to 3 steps, not in 4"),
        (KNOWN, {"steps": 0}, ValueError, "3 tokens can be drawn in 1 to 3 steps, not in 0"),
        (KNOWN, {"steps": (1, 1)}, ValueError, "steps of 5 slots in all do not fit 6 positions"),
        (KNOWN, {"steps": (3, 0)}, ValueError, "at least one slot"),
        (KNOWN, {"steps": 2, "order": raster(2, 4)}, ValueError, "the order is of a grid of 8 tokens, known has 6"),
    ],
)
def test_completing_says_what_is_wrong(known, arguments, error, says):
    with pytest.raises(error, match=says):
        completing(known, **arguments)


def test_raster_masks_cost_nothing():
    plan = raster(4, 4)
    assert plan.mask(0, 16) == "causal" and plan.mask(5, 16) == "causal" and plan.mask(5, 6, 3) is None
    assert rows(4, 4, 4).mask(4, 8) is None and torch.is_tensor(rows(4, 4, 4).mask(0, 8))


def test_each_row_has_its_own_order():
    plan = random_order(4, 4, 5, torch.Generator().manual_seed(0))
    assert plan.pos.shape == (5, 16) and len({tuple(row) for row in plan.pos.tolist()}) == 5
    twice = plan.repeat(2)
    assert torch.equal(twice.pos, torch.cat([plan.pos, plan.pos])) and raster(2, 2).repeat(2).pos.dim() == 1
    assert plan.at(torch.tensor([-1, 3])).tolist() == [[-1, int(p)] for p in plan.pos[:, 3]]


def test_a_plan_takes_the_order_of_another():
    a, b = random_order(3, 3), raster(3, 3)
    copy = a.clone().copy_(b)
    assert torch.equal(copy.pos, b.pos) and not torch.equal(a.pos, b.pos)
    with pytest.raises(ValueError, match="does not fit"):
        copy.copy_(rows(3, 3, 3))
