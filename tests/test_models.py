"""Families x plans x laws, on fixed and on random ones; and what only one family does."""

import itertools
import math

import pytest
import torch
from families import FAMILIES, batch, model, par
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minar import GPT, AnyOrderAR, MaskedAR, NextStepAR, Plan, Transformer, generate, laws, model_laws
from minar.lab import checkpoint
from minar.lab.train import fit
from minar.plan import random_order, random_sets, raster, region_groups, rows


def judge(m, tokens, cond, plan):
    """Every law that the model is subject to."""
    model_laws.check_no_peeking(m, tokens, cond, plan)
    model_laws.check_every_token_counts(m, tokens, cond, plan)
    model_laws.check_nll(m, tokens, cond, plan)
    model_laws.check_guided_step(m, tokens, cond, plan)
    if not tokens.is_floating_point():
        model_laws.check_decoding(m, cond, plan)
    if max(plan.sizes) > 1:
        model_laws.check_no_twins(m, tokens, cond, plan)
    if m.cached:
        model_laws.check_cache(m, tokens, cond, plan)
    if not isinstance(m, NextStepAR):
        model_laws.check_parallel(m, tokens, cond, plan)


PLANS = {
    "raster": lambda: raster(4, 4),
    "rows": lambda: rows(4, 4, 4),
    "regions": lambda: region_groups(4, 4, 2),
    "random": lambda: random_order(4, 4, generator=torch.Generator().manual_seed(0)),
    "random per row": lambda: random_order(4, 4, 2, torch.Generator().manual_seed(0)),
    "sets per row": lambda: random_sets(4, 4, 5, 2, torch.Generator().manual_seed(0)),
    "shrinking": lambda: Plan(torch.arange(16).flip(0), (7, 5, 3, 1)),
}


def shrinks(plan):
    return plan.reads_from is None


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_laws(family, plan, words):
    plan, m = PLANS[plan](), model(FAMILIES[family], words=words)
    if shrinks(plan) and family == "next step":
        pytest.skip("a family that reads the step before refuses steps that shrink")
    judge(m, *batch(words=words), plan)


@pytest.mark.parametrize("plan", ["rows", "regions", "random per row"])
@pytest.mark.parametrize("family", FAMILIES)
def test_laws_on_continuous_tokens(family, plan):
    m = model(FAMILIES[family], continuous=True)
    tokens, cond = batch(continuous=True)
    judge(m, tokens, cond, PLANS[plan]())
    drawn = generate(m, cond, PLANS[plan](), cfg=2.0, temperature=0)
    assert drawn.shape == (2, 16, 3) and torch.allclose(drawn, generate(m, cond, PLANS[plan](), 2.0, temperature=0))
    again = generate(m, cond, PLANS[plan](), 2.0, temperature=0, use_cache=False)
    assert torch.allclose(drawn, again, atol=1e-4)


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
@pytest.mark.parametrize("target", ["told", "not told"])
def test_laws_on_par(words, target):
    """Transition tokens alone are enough to tell the slots of the seam apart, as in the official model."""
    m = par((4, 6), words=words)
    if target == "not told":
        m.target.weight.data.zero_()
    judge(m, *batch((4, 6), words), region_groups(4, 6, 2))


@st.composite
def cases(draw):
    """A family, a grid, a plan that it can follow, a condition and a dtype."""
    family = draw(st.sampled_from([*FAMILIES, "par"]))
    per_side = draw(st.integers(1, 3)) if family != "par" else 2
    grid = (draw(st.integers(1, 3)) * per_side, draw(st.integers(1, 3)) * per_side)
    n, words, n_rows = grid[0] * grid[1], draw(st.sampled_from([0, 0, 1, 4])), draw(st.integers(2, 3))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.float64]))
    if family == "par":
        return par(grid, 2, words).to(dtype), *batch(grid, words, n_rows), region_groups(*grid, 2)
    m = model(FAMILIES[family], grid, words, draw(st.integers(0, 9))).to(dtype)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from(["raster", "regions", "sizes"]))
    if kind == "raster":
        plan = raster(*grid)
    elif kind == "regions":
        plan = region_groups(*grid, per_side)
    else:
        order = random_order(*grid, draw(st.sampled_from([None, n_rows])), generator)
        ends = [0, *sorted(draw(st.sets(st.integers(1, n))) - {n}), n]
        sizes = [b - a for a, b in itertools.pairwise(ends)]
        plan = Plan(order.pos, tuple(sorted(sizes) if family == "next step" else sizes))
    return m, *batch(grid, words, n_rows, draw(st.integers(0, 99))), plan


@given(case=cases(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_case_breaks_a_law(case, data):
    """Two laws a case, drawn, so that 300 cases fit into a minute."""
    m, tokens, cond, plan = case
    names = ["no_peeking", "every_token_counts", "nll", "guided_step"]
    if max(plan.sizes) > 1:
        names.append("no_twins")
    if m.cached:
        names.append("cache")
    if not isinstance(m, NextStepAR):
        names.append("parallel")
    for name in data.draw(st.lists(st.sampled_from(names), min_size=2, max_size=2, unique=True)):
        getattr(model_laws, f"check_{name}")(m, tokens, cond, plan)
    full = generate(m, cond, plan, 2.0, temperature=0)
    assert torch.equal(full, generate(m, cond, plan, 2.0, temperature=0, use_cache=False))


def gpt():
    return laws.wake(GPT(Transformer(32, 2, 2, hidden=32), 24, 5, (4, 4)))


def test_with_the_raster_plan_it_is_the_gpt():
    model_laws.check_same_as_gpt(model(), gpt(), *batch(), raster(4, 4))


def test_a_prompt_may_be_everything():
    tokens, cond = batch()
    plan = region_groups(4, 4, 2)
    assert torch.equal(generate(model(), cond, plan, prompt=tokens, prompt_steps=plan.n_steps), tokens)


def test_guidance_may_depend_on_the_step():
    m, (_, cond), plan = model(), batch(), rows(4, 4, 4)
    seen = []

    def scale(plan, s):
        seen.append(s)
        return 2.0

    a = generate(m, cond, plan, scale, temperature=0)
    assert torch.equal(a, generate(m, cond, plan, 2.0, temperature=0)) and seen == [0, 1, 2, 3]
    falling = generate(m, cond, plan, lambda plan, s: 3.0 - s, temperature=0)
    first = generate(m, cond, plan, 3.0, temperature=0)
    assert torch.equal(falling[:, :4], first[:, :4]) and not torch.equal(falling, first)


def test_drawing_is_repeatable_and_obeys_the_knobs():
    m, (_, cond), plan = model(), batch(), rows(4, 4, 4)
    draw = lambda seed, **knobs: generate(m, cond, plan, generator=torch.Generator().manual_seed(seed), **knobs)  # noqa: E731
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(draw(0, top_k=1), generate(m, cond, plan, temperature=0))


def test_the_masked_loss_is_the_mean_nll_over_all_orders(monkeypatch):
    """Exactly: all 24 orders of 2 x 2 tokens in steps of 1, 1, 2, and each moment of each."""
    m = model(MaskedAR, (2, 2))
    orders = torch.tensor(list(itertools.permutations(range(4))))
    plan, (tokens, cond) = Plan(orders, (1, 1, 2)), batch((2, 2), rows=1)
    tokens, cond = tokens.expand(24, -1), cond.expand(24)
    losses = []
    for moment in range(3):
        monkeypatch.setattr(torch, "randint", lambda *a, m=moment, **k: torch.full((24, 1), m))
        losses.append(m(tokens, cond, plan, p_drop=0.0))
    nll = m.nll(tokens, cond, plan)
    assert (torch.stack(losses).mean() - nll.mean()).abs() < 1e-5
    assert nll.mean(1).std() > 1e-3, "the orders must not all be the same"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probabilities_of_all_images_add_up_to_one(family):
    """27 images of 3 tokens, in any order and in steps of any size: a model that peeks would promise more than 1."""
    everything = torch.tensor(list(itertools.product(range(3), repeat=3)))
    m, label = model(FAMILIES[family], (1, 3), vocab=3), torch.zeros(27, dtype=torch.long)
    for plan in (raster(1, 3), random_order(1, 3), rows(1, 3, 3), Plan(torch.tensor([1, 0, 2]), (1, 2))):
        p = (-m.nll(everything, label, plan).sum(1)).exp().detach()
        assert abs(float(p.sum()) - 1) < 1e-5 and p.std() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_trained(family):
    m = model(FAMILIES[family], words=3)
    laws.check_all_trained(m, *batch(words=3), rows(4, 4, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_fit_and_checkpoint(family, tmp_path):
    torch.manual_seed(0)
    m = model(FAMILIES[family])
    tokens, cond = batch(rows=32)
    tokens = (tokens // 12) * 12 + cond[:, None]  # something to learn
    nn.init.zeros_(m.head.weight)
    log = fit(m, (tokens, cond), 60, 16, lr=5e-3, device="cpu", progress=False, log_every=20, plan=rows(4, 4, 4))
    assert log[-1]["loss"] < 0.7 * math.log(24)
    again = checkpoint.load(checkpoint.save(tmp_path / "m.safetensors", m))
    assert torch.equal(
        generate(again, cond, rows(4, 4, 4), temperature=0), generate(m, cond, rows(4, 4, 4), temperature=0)
    )


def test_fit_draws_plans_and_resumes(tmp_path):
    def run(steps_to_do, out):
        torch.manual_seed(0)
        m = model(AnyOrderAR)
        drawn = []

        def plan(n, done):
            drawn.append(random_order(4, 4, n))
            if len(drawn) == steps_to_do + 2:
                raise KeyboardInterrupt
            return drawn[-1]

        try:
            fit(m, batch(rows=16), 6, 8, device="cpu", progress=False, plan=plan, out=out, save_every=0)
        except KeyboardInterrupt:
            return None
        return m.state_dict()

    whole = run(99, tmp_path / "a")
    assert run(3, tmp_path / "b") is None
    again = run(99, tmp_path / "b")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
