"""Papers: mechanisms on our trunk, and what they promise."""

import itertools
import math

import pytest
import torch
from families import batch, model, par

from minar import AnyOrderAR, CategoricalHead, NextStepAR, generate, laws
from minar.lab import checkpoint
from minar.lab.train import fit
from minar.papers import jacobi
from minar.papers.blockwise import Blockwise, among
from minar.plan import random_order, raster, region_groups, rows


def blockwise(n_ahead=3, base=None):
    torch.manual_seed(0)
    b = laws.wake(Blockwise(base or model(), n_ahead, 16))
    laws.wake(b.model)
    return b.eval()


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("family", [NextStepAR, AnyOrderAR])
def test_blockwise_in_exact_mode_is_greedy_decoding(family, cfg):
    b, (_, cond) = blockwise(base=model(family)), batch(rows=3)
    for plan in (raster(4, 4), random_order(4, 4, generator=torch.Generator().manual_seed(0))):
        greedy = generate(b.model, cond, plan, cfg, temperature=0)
        for rows_ in (slice(0, 3), slice(1, 2)):
            tokens, settled = b.decode(cond[rows_], plan, cfg)
            assert torch.equal(tokens, greedy[rows_]) and sum(settled) == 16 and max(settled) <= 4
            assert len(settled) <= 16


def test_blockwise_that_accepts_more_needs_fewer_passes():
    b, (_, cond) = blockwise(), batch(rows=1)
    passes = [len(b.decode(cond, raster(4, 4), accept=among(n))[1]) for n in (1, 12, 24)]
    assert passes[0] > passes[1] > passes[2] == math.ceil((16 - 1) / 4) + 1  # one alone, then four a pass


def test_guessing_heads_learn_and_the_model_stays(tmp_path):
    """On tokens that follow from the one before, guesses come true, and passes settle several tokens."""
    torch.manual_seed(0)
    start = torch.arange(24)
    tokens, cond = (start[:, None] + 5 * torch.arange(16)) % 24, start % 5
    m = model()
    m.head.weight.data.zero_()
    fit(m, (tokens, cond), 300, 24, lr=1e-2, device="cpu", progress=False, plan=raster(4, 4))
    before = {k: v.clone() for k, v in m.state_dict().items()}
    b = Blockwise(m, 3, 64)
    log = fit(b, (tokens, cond), 300, 24, lr=1e-2, device="cpu", progress=False, plan=raster(4, 4))
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert all(torch.equal(v, before[k]) for k, v in b.model.state_dict().items())
    drawn, settled = b.decode(cond[:1], raster(4, 4))
    assert torch.equal(drawn, generate(m, cond[:1], raster(4, 4), temperature=0))
    assert sum(settled) / len(settled) > 2
    again = checkpoint.load(checkpoint.save(tmp_path / "b.safetensors", b))
    assert again.decode(cond[:1], raster(4, 4))[1] == settled


@pytest.mark.parametrize("window", [1, 3, 16, 40])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_jacobi_at_temperature_0_is_greedy_decoding(cfg, window):
    for family in (NextStepAR, AnyOrderAR):
        m, (_, cond), plan = model(family), batch(rows=3), raster(4, 4)
        tokens, settled = jacobi.decode(m, cond, plan, window, cfg, temperature=0)
        assert torch.equal(tokens, generate(m, cond, plan, cfg, temperature=0)) and sum(settled) == 16


@pytest.mark.parametrize("window", [1, 2, 3])
def test_jacobi_draws_from_the_model(window):
    """20,000 images of 3 tokens of 3 codes, against the exact probability of each of the 27."""
    m, plan = model(grid=(1, 3), vocab=3), raster(1, 3)
    images = torch.tensor(list(itertools.product(range(3), repeat=3)))
    p = (-m.nll(images, torch.zeros(27, dtype=torch.long), plan).sum(1)).exp().detach()

    def draw(n):
        generator = torch.Generator().manual_seed(window)
        tokens, settled = jacobi.decode(m, torch.zeros(n, dtype=torch.long), plan, window, generator=generator)
        assert sum(settled) == 3
        return (tokens * torch.tensor([9, 3, 1])).sum(1)

    laws.check_sampler(draw, p / p.sum())


def test_jacobi_in_single_rows_draws_from_the_model_too():
    """Where rows do not wait for each other a pass settles several tokens; the distribution must not notice."""
    m, plan = model(grid=(1, 3), vocab=3), raster(1, 3)
    images = torch.tensor(list(itertools.product(range(3), repeat=3)))
    p = (-m.nll(images, torch.zeros(27, dtype=torch.long), plan).sum(1)).exp().detach()
    generator, counts, passes = torch.Generator().manual_seed(0), torch.zeros(27), 0
    for _ in range(3000):
        tokens, settled = jacobi.decode(m, torch.zeros(1, dtype=torch.long), plan, 3, generator=generator)
        counts[int((tokens * torch.tensor([9, 3, 1])).sum())] += 1
        passes += len(settled)
    error = (counts / 3000 - p).abs() / (p * (1 - p) / 3000).sqrt()
    assert error.max() < 5 and passes < 3 * 3000


def test_par_needs_its_own_plan():
    m, (tokens, cond) = par(), batch()
    for plan in (raster(4, 4), rows(4, 4, 4), region_groups(4, 4, 4)):
        with pytest.raises(ValueError, match="needs the plan region_groups"):
            m(tokens, cond, plan)
    loaded = laws.wake(par((4, 6)))
    assert generate(loaded, cond, region_groups(4, 6, 2)).shape == (2, 24)


def test_par_is_saved_with_its_regions(tmp_path):
    m, (tokens, cond), plan = par(), batch(), region_groups(4, 4, 2)
    again = checkpoint.load(checkpoint.save(tmp_path / "par.safetensors", m))
    assert again.per_side == 2 and torch.equal(again.nll(tokens, cond, plan), m.nll(tokens, cond, plan))


def test_what_continues_from_a_gpt_starts_where_the_gpt_is():
    """A raster model's weights fit into PAR: only target and transition tokens are new."""
    m, p = model(), par()
    missing = p.load_state_dict(m.state_dict(), strict=False)
    assert missing.missing_keys == ["transition.weight"] and not missing.unexpected_keys
    assert isinstance(m.head, CategoricalHead)
