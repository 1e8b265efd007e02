"""Fast decoding: the tokens of plain decoding, whatever was recorded before."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, batch, model, par

from minar import GPT, MaskedAR, Transformer, fast, generate, laws
from minar.plan import random_order, raster, region_groups, rows

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]


def on(device, m):
    torch.set_float32_matmul_precision("highest")
    return m.to(device)


def gpt(device="cpu"):
    return on(device, laws.wake(GPT(Transformer(32, 2, 2, hidden=32), 24, 5, (4, 4))))


PLANS = {
    "raster": lambda: raster(4, 4),
    "regions": lambda: region_groups(4, 4, 2),
    "rows": lambda: rows(4, 4, 4),
    "per row": lambda: random_order(4, 4, 3, torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_plain_and_of_naive_decoding(family, plan, device):
    m, plan, (_, cond) = on(device, model(FAMILIES[family])), PLANS[plan](), batch(rows=3)
    cond = cond.to(device)
    for cfg in (1.0, 2.0):
        expected = generate(m, cond, plan, cfg, temperature=0)
        assert torch.equal(expected, generate(m, cond, plan, cfg, temperature=0, use_cache=False))
        for _ in range(2):  # a recording must work more than once
            assert torch.equal(fast.generate(m, cond, plan, cfg, temperature=0), expected)
        other = cond.roll(1)
        assert torch.equal(
            fast.generate(m, other, plan, cfg, temperature=0), generate(m, other, plan, cfg, temperature=0)
        )


@pytest.mark.parametrize("device", DEVICES)
def test_other_batches_prompts_and_orders(device):
    m, (tokens, cond) = on(device, model()), batch(rows=3)
    tokens, cond = tokens.to(device), cond.to(device)
    for n in (3, 1, 2, 3):
        plan = region_groups(4, 4, 2)
        expected = generate(m, cond[:n], plan, 2.0, temperature=0)
        assert torch.equal(fast.generate(m, cond[:n], plan, 2.0, temperature=0), expected)
    for steps in (0, 2, 7, 5, 2):
        known = {"prompt": tokens, "prompt_steps": steps, "temperature": 0}
        assert torch.equal(fast.generate(m, cond, plan, **known), generate(m, cond, plan, **known))
    for seed in range(3):
        order = random_order(4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(fast.generate(m, cond, order, temperature=0), generate(m, cond, order, temperature=0))


@pytest.mark.parametrize("device", DEVICES)
def test_a_gpt_is_taken_as_it_is(device):
    g, (tokens, label) = gpt(device), batch()
    tokens, label = tokens.to(device), label.to(device)
    for cfg in (1.0, 2.0):
        expected = g.generate(label, cfg, temperature=0)
        assert torch.equal(fast.generate(g, label, cfg=cfg, temperature=0), expected)
        completed = g.generate(label, cfg, prompt=tokens[:, :6], temperature=0)
        assert torch.equal(fast.generate(g, label, cfg=cfg, prompt=tokens[:, :6], temperature=0), completed)
    with torch.no_grad():
        g.head.weight.mul_(-1)  # the same modules: what changes in the GPT changes here
    assert torch.equal(fast.generate(g, label, temperature=0), g.generate(label, temperature=0))


@pytest.mark.parametrize("device", DEVICES)
def test_drawing_is_that_of_the_plain_loop(device):
    m, (_, cond), plan = on(device, model()), batch(rows=3), region_groups(4, 4, 2)
    cond = cond.to(device)
    for knobs in ({}, {"top_k": 5}, {"top_p": 0.8, "temperature": 0.7}):
        a, b = (torch.Generator(device).manual_seed(7) for _ in range(2))
        for _ in range(2):  # and the generator moves on
            drawn = fast.generate(m, cond, plan, 2.0, generator=a, **knobs)
            assert torch.equal(drawn, generate(m, cond, plan, 2.0, generator=b, **knobs))
    torch.manual_seed(3)
    without = fast.generate(m, cond, plan)
    torch.manual_seed(3)
    assert torch.equal(without, generate(m, cond, plan))


@pytest.mark.parametrize("device", DEVICES)
def test_weights_that_change_are_seen(device):
    m, (_, cond), plan = on(device, model()), batch(), raster(4, 4)
    cond = cond.to(device)
    before = fast.generate(m, cond, plan, temperature=0)
    with torch.no_grad():
        m.head.weight.copy_(m.head.weight.roll(1, 0))
    inplace = fast.generate(m, cond, plan, temperature=0)
    assert torch.equal(inplace, generate(m, cond, plan, temperature=0)) and not torch.equal(inplace, before)
    m.head.weight = torch.nn.Parameter(m.head.weight.detach().roll(1, 0))
    moved = fast.generate(m, cond, plan, temperature=0)
    assert torch.equal(moved, generate(m, cond, plan, temperature=0)) and not torch.equal(moved, inplace)


@pytest.mark.parametrize("device", DEVICES)
def test_what_it_draws_can_be_trained_on(device):
    m, (_, cond), plan = on(device, model()), batch(), rows(4, 4, 4)
    drawn = fast.generate(m, cond.to(device), plan)
    m(drawn, cond.to(device), plan.to(device)).backward()
    assert m.embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_in_training_mode_is_refused(device):
    m, (_, cond) = on(device, model()).train(), batch()
    with pytest.raises(ValueError, match=r"NextStepAR is in training mode: call model.eval\(\)"):
        fast.generate(m, cond.to(device), raster(4, 4))


@gpu
def test_old_recordings_are_let_go():
    m, (_, cond) = on("cuda", model()), batch(rows=2)
    for i in range(fast.KEPT + 3):
        fast.generate(m, cond.cuda(), raster(4, 4), 1.0 + i, temperature=0)
    assert len(fast._recordings[m]) == fast.KEPT


@gpu
def test_in_half_precision_hidden_states_stay_close():
    m, (tokens, cond), plan = on("cuda", model(grid=(8, 8))), batch((8, 8)), region_groups(8, 8, 2)
    tokens, cond, plan = tokens.cuda(), cond.cuda(), plan.to("cuda")
    exact = m.hidden(plan.permute(tokens), m.prefix(cond), plan)
    half = m.bfloat16().hidden(plan.permute(tokens), m.prefix(cond), plan).float()
    assert (half - exact).norm() / exact.norm() < 1e-2


@gpu
def test_a_batch_that_does_not_fit_names_one_that_does():
    m = on("cuda", model(grid=(64, 64)))
    with pytest.raises(RuntimeError, match=r"rows take .* GB, .* GB are free: try a batch of \d+"):
        fast.generate(m, torch.zeros(400_000, dtype=torch.long, device="cuda"), raster(64, 64))


def test_families_that_cannot_cache_are_recorded_too():
    assert not MaskedAR.cached  # each step is a full pass, and a recording of full passes is a recording
    p = par()
    assert torch.equal(
        fast.generate(p, batch()[1], region_groups(4, 4, 2), temperature=0),
        generate(p, batch()[1], region_groups(4, 4, 2), temperature=0),
    )


@gpu
def test_a_library_that_prepares_itself_does_so_before_the_recording():
    """A next-scale model convolves from its second step on; cuDNN takes memory at its first call in a process."""
    code = """
import torch
from test_next_scale import batch, model
from minar import fast
from minar.plan import scales
fast.generate(model().cuda().eval(), batch()[1].cuda(), scales((1, 2, 3)), 2.0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
