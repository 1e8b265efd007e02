"""Plans: every position once, the mask that follows, and the numbers that papers print."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from probes import OFFICIAL

from minar import Plan, model_laws
from minar.plan import cosine_sizes, random_order, random_sets, raster, region_groups, rows, scales

SIDES = st.integers(1, 6)


@st.composite
def plans(draw, shrinking=True):
    """Any plan: named ones, and random sizes in random orders, one for all or one for each of 3 rows."""
    h, w = draw(SIDES), draw(SIDES)
    kind = draw(st.sampled_from(["raster", "regions", "rows", "sets", "scales", "any"]))
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


def test_cosine_sizes_are_those_of_maskgit():
    assert cosine_sizes(256, 8) == (5, 15, 24, 31, 39, 45, 48, 49)
    assert cosine_sizes(256, 16) == (2, 3, 7, 8, 11, 13, 15, 16, 19, 20, 22, 23, 23, 25, 24, 25)
    assert cosine_sizes(256, 64)[:17] == (1,) * 13 + (2, 3, 2, 2)


@given(n=st.integers(1, 300), data=st.data())
@settings(max_examples=100, deadline=None)
def test_cosine_sizes_fit(n, data):
    k = data.draw(st.integers(1, n))
    sizes = cosine_sizes(n, k)
    assert sum(sizes) == n and len(sizes) == k and min(sizes) >= 1


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
