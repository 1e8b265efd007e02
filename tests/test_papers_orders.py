"""Papers on orders: RAR anneals them, ARDM prices their steps and codes along them, sigma-GPT bursts through them.

The laws come first, then what each paper promises, then planted bugs: the test ids are the table.
"""

import itertools
import math

import pytest
import torch
from families import V, batch, model
from torch import nn

from minar import AnyOrderAR, CategoricalHead, ClassLabel, KVCache, MaskedAR, NextStepAR, Plan, Transformer, laws
from minar.lab.train import fit
from minar.papers import ardm, ardm_coder, rar, sigma_gpt
from minar.plan import cosine_sizes, random_order, raster, region_groups, rows

ZERO = torch.zeros(1, dtype=torch.long)
TOY = 0  # a seed with which tokens depend on each other strongly


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Laws.


def annealing(grid=(2, 3), start=0.5, end=0.75, n=6000):
    """The share of rows in raster order is the one that is promised, and random orders are uniform and a row's own."""
    torch.manual_seed(0)
    plan, straight = rar.annealed(grid, start, end), raster(*grid)
    for done in (0, 0.3, 0.499, 0.5, 0.6, 0.625, 0.7, 0.75, 0.99):
        drawn = plan(n, done)
        assert drawn.sizes == straight.sizes and drawn.pos.shape == (n, 6), "one token a step, an order for each row"
        r = min(1, max(0, (end - done) / (end - start)))
        share = (drawn.pos != straight.pos).any(1).float().mean()
        wanted = r * (1 - 1 / math.factorial(6))
        error = math.sqrt(max(wanted * (1 - wanted) / n, 1e-7))
        assert abs(share - wanted) < 5 * error, f"at {done} {share:.3f} of the rows are shuffled, not {wanted:.3f}"
    assert len(plan(n, 0).pos[:, :2].unique(dim=0)) == 30, "some orders never come"
    laws.check_sampler(lambda n: plan(n, 0).pos[:, 0], torch.full((6,), 1 / 6))


def curve(family=MaskedAR):
    """At each t it is the nll of all that is hidden, along the order that was drawn; in sum, the nll of the image."""
    m, (tokens, cond) = model(family, (2, 3)), batch((2, 3))
    losses, pos = ardm.loss_curve(m, tokens, cond, generator=seeded()), random_order(2, 3, 2, seeded()).pos
    for t in range(6):
        wanted = m.nll(tokens, cond, Plan(pos, (1,) * t + (6 - t,)))[:, t:].mean()
        assert abs(losses[t] - wanted) < 1e-5, f"with {t} known a token costs {losses[t]:.4f}, not {wanted:.4f}"
    total = ardm.loss_curve(m, tokens, cond, 60, seeded()).sum() / math.log(2)
    spent = ardm.bits(m, tokens, cond, 60, generator=seeded(1)).mean()
    assert abs(total - spent) < 0.03 * spent, f"the curve adds up to {total:.2f} bits, the images need {spent:.2f}"


def cheapest():
    """Of all ways to cut up to 8 tokens into steps, none is cheaper."""
    for seed, n in itertools.product(range(6), (1, 2, 5, 8)):
        losses = torch.rand(n, generator=seeded(seed)) * (torch.linspace(3, 1, n) if seed % 2 else 1)
        for budget in range(1, n + 1):
            cuts = [(0, *inner, n) for inner in itertools.combinations(range(1, n), budget - 1)]
            ways = [tuple(b - a for a, b in itertools.pairwise(cut)) for cut in cuts]
            sizes = ardm.schedule(losses, budget)
            assert sizes in ways, f"{sizes} are not {budget} steps of {n} tokens"
            best = min(price(losses, way) for way in ways)
            assert price(losses, sizes) <= best + 1e-6, f"{sizes} loses {price(losses, sizes):.4f}, not {best:.4f}"


def price(losses, sizes):
    starts = [0, *itertools.accumulate(sizes)]
    return float(sum(size * losses[a] for size, a in zip(sizes, starts)))


def coding(family=MaskedAR, plan=None, words=0, sharp=1.0):
    """What comes back is what was encoded, in the bits that the model says, even where it thought it impossible."""
    m, (tokens, cond), plan = model(family, words=words), batch(words=words, rows=3), plan or PLANS["random"]()
    m.head.weight.data *= sharp
    for x, y in zip(tokens[:, None], cond[:, None]):
        code = ardm_coder.encode(m, x, y, plan)
        assert torch.equal(ardm_coder.decode(code, m, y, plan), x), "another image came back"
        need = float(m.nll(x, y, plan).detach().sum()) / math.log(2)
        if sharp == 1:
            assert need - 0.1 <= 8 * len(code) <= 1.02 * need + 32, f"{8 * len(code)} bits for an nll of {need:.1f}"


def sharp():
    """Where the model is sure of something else, the image comes back, too."""
    coding(sharp=60)


def alone(words=0, cfg=1.0, K=3):
    """Orders side by side are what each of them is alone, and the cache holds what a fresh one would."""
    m, (tokens, cond) = model(words=words), batch(words=words, rows=1)
    prefix, cache = m.prefix(cond, guided=cfg != 1), KVCache(99)
    for n, end in ((0, 1), (0, 16), (3, 4), (3, 16), (11, 12), (15, 16)):
        torch.manual_seed(1)
        orders = torch.cat([torch.arange(n).expand(K, -1), n + random_order(1, 16 - n, K).pos], 1)
        p = sigma_gpt.probabilities(m, tokens, prefix, orders, n, end, cache, cfg)
        for order, one in zip(orders, p):
            plan = Plan(order, (1,) * 16)
            h = m.hidden_pair(plan.permute(tokens), prefix, plan, n, end)
            assert torch.allclose(m.head.logits(*h, cfg)[0].softmax(-1), one, atol=1e-5), "an order sees another"
        fresh, plan = KVCache(99), raster(4, 4)
        if n:
            m.hidden_pair(tokens, prefix, plan, 0, n, fresh)
            assert cache.n == fresh.n, f"the cache holds {cache.n} slots, {fresh.n} are settled"
            for mine, wanted in zip(cache.layers.values(), fresh.layers.values()):
                assert torch.allclose(mine[0][:, :, : cache.n], wanted[0][:, :, : cache.n], atol=1e-5), "other keys"


def fresh(n, vocab, classes, width, layers=1):
    torch.manual_seed(0)
    cond, head = ClassLabel(classes, width), CategoricalHead(width, vocab)
    return NextStepAR(Transformer(width, layers, 2, hidden=width), nn.Embedding(vocab, width), cond, head, (1, n))


def toy(n=3):
    """A model of n tokens of 3 codes, which depend on each other strongly."""
    m = laws.wake(fresh(n, 3, 1, 16), seed=TOY)
    m.head.weight.data *= 2
    return m


def exact(m, orders, given=None):
    """The probability of each of the 3^n images, a mean over orders. given: (position, token) that stands in front."""
    n = m.n_tokens
    images = torch.tensor(list(itertools.product(range(3), repeat=n)))
    skip, total = 0 if given is None else 1, 0
    for order in orders:
        nll = m.nll(images, ZERO.expand(len(images)), Plan(torch.tensor(order), (1,) * n)).detach()
        total += (-nll[:, skip:].sum(1)).exp() / len(orders)
    return total if given is None else total * (images[:, given[0]] == given[1])


def count(draw, n, cells):
    """How often each image came in n calls of draw(), which gives one."""
    counts = torch.zeros(cells)
    for _ in range(n):
        counts[int((draw()[0] * 3 ** torch.arange(int(math.log(cells, 3) + 0.5)).flip(0)).sum())] += 1
    return counts


def agrees(counts, p):
    """Counts of images are what p makes likely, by chi^2; images that come less than 5 times are taken together."""
    n = float(counts.sum())
    assert not counts[p == 0].any(), "an image came that is impossible"
    rare = n * p < 5
    p, counts = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (p, counts))
    p, counts = p[p > 0], counts[p > 0]
    freedom, chi = len(p) - 1, float(((counts - n * p) ** 2 / (n * p)).sum())
    assert chi < freedom + 5 * math.sqrt(2 * freedom), f"chi^2 is {chi:.0f} with {freedom} degrees of freedom"


def bursting():
    """With one order and what fails drawn anew, a burst draws as one token after the other."""
    m, generator = toy(), seeded()
    p = exact(m, list(itertools.permutations(range(3))))
    agrees(count(lambda: sigma_gpt.decode(m, ZERO, 1, generator=generator, redraw=True)[0], 600, 27), p)


def following():
    """Along an order that is given, behind a token that is given."""
    m, generator, known = toy(), seeded(), (torch.tensor([False, True, False]), torch.tensor([9, 2, 9]))
    p = exact(m, [(1, 2, 0)], (1, 2))
    order = torch.tensor([2, 1, 0])
    draw = lambda: sigma_gpt.decode(m, ZERO, 1, 1.0, generator, known, order, redraw=True)[0]  # noqa: E731
    agrees(count(draw, 400, 27), p)


def passing():
    """20,000 pairs of tokens at once: what passes, and else what max(0, q - p) gives, is distributed as q."""
    p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.1, 0.3, 0.3, 0.3])

    def draw(n):
        generator, ps = seeded(), p.expand(n, 2, -1)
        draft = torch.multinomial(p, 2 * n, replacement=True, generator=generator).view(n, 2)
        kept = sigma_gpt.verify(draft, ps, torch.stack([ps[:, 0], q.expand(n, -1)], 1), generator)
        assert kept.min() >= 1, "the first token must pass"
        instead = torch.multinomial((q - p).clamp_min(0), n, replacement=True, generator=generator)
        return torch.where(kept == 2, draft[:, 1], instead)

    laws.check_sampler(draw, q)


LAWS = (annealing, curve, cheapest, coding, sharp, alone, bursting, following, passing)


@pytest.mark.parametrize("law", LAWS)
def test_without_a_bug_the_law_holds(law):
    law()


# RAR.


def test_where_annealing_begins_and_ends():
    assert [rar.share_random(x) for x in (0, 0.49, 0.5, 0.625, 0.75, 1)] == [1, 1, 1, 0.5, 0, 0]
    assert [rar.share_random(x, 0.4, 0.4) for x in (0.39, 0.4)] == [1, 0]
    assert rar.share_random(0, 0, 0) == 0 and rar.share_random(0.999, 1, 1) == 1
    torch.manual_seed(0)
    assert torch.equal(rar.annealed((2, 3), 0, 0)(4, 0.0).pos, torch.arange(6).expand(4, -1))


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-0.1, 0.5, "start must be a number in [0, 1], got -0.1"),
        (0.5, 1.1, "end must be a number in [0.5, 1], got 1.1"),
        (0.8, 0.7, "end must be a number in [0.8, 1], got 0.7"),
        (math.nan, 0.7, "start must be a number in [0, 1], got nan"),
    ],
)
def test_bad_shares(start, end, message):
    refuses(lambda: rar.annealed((2, 3), start, end), message)


def refuses(call, message, error=ValueError):
    with pytest.raises(error) as raised:
        call()
    assert message in str(raised.value) and "\n" not in str(raised.value)


CYCLES = (torch.arange(6)[:, None] + torch.arange(8)) % 6  # each follows from its first token
PLAIN = torch.arange(6)[:, None].repeat(1, 8)  # all tokens are the same


def trained(images, steps, plan):
    m = fresh(8, 6, 1, 32)
    data = images.repeat(4, 1), ZERO.expand(24)
    fit(m, data, steps, 24, lr=1e-2, device="cpu", progress=False, plan=plan)
    return m


def test_annealed_training_ends_in_raster():
    """At equal updates raster decoding is learned better than by random orders alone, which are harder."""
    loss = []
    for shares in ((0.5, 0.75), (1, 1)):
        m = trained(CYCLES, 100, rar.annealed((1, 8), *shares))
        loss.append(float(m.nll(CYCLES, ZERO.expand(6), raster(1, 8)).detach().mean()))
        assert m.target.weight.abs().max() > 0.01
    assert loss[0] < 0.6 * loss[1]


# ARDM.


@pytest.mark.parametrize("family", [MaskedAR, AnyOrderAR])
def test_the_curve_in_both_families(family):
    curve(family)


def test_a_schedule_costs_what_the_curve_says():
    m, (tokens, cond) = model(MaskedAR, (2, 3)), batch((2, 3), rows=8)
    losses = ardm.loss_curve(m, tokens, cond, 60, seeded())
    for sizes in ((6,), (1, 2, 3), ardm.schedule(losses, 3), (1,) * 6):
        measured = float(ardm.bits(m, tokens, cond, 60, sizes, seeded(1)).mean())
        assert measured == pytest.approx(price(losses, sizes) / math.log(2), rel=0.02)


def test_schedules():
    falling = 1 / (1 + torch.arange(64.0))
    sizes = ardm.schedule(falling, 8)
    assert sizes == tuple(sorted(sizes)) and sizes[0] == 1 and sum(sizes) == 64
    assert price(falling, sizes) < min(price(falling, (8,) * 8), price(falling, cosine_sizes(64, 8)))
    assert ardm.schedule(falling, 1) == (64,) and ardm.schedule(falling, 64) == (1,) * 64


def test_bits_of_the_toy_bound_those_of_the_mixture():
    m, (tokens, cond) = model(MaskedAR, (1, 3)), batch((1, 3), rows=4)
    every = [Plan(torch.tensor(order), (1, 1, 1)) for order in itertools.permutations(range(3))]
    each = torch.stack([m.nll(tokens, cond, plan).sum(1) for plan in every]).detach() / math.log(2)
    drawn = ardm.bits(m, tokens, cond, 400, generator=seeded())
    assert drawn.shape == (4,) and torch.allclose(drawn, each.mean(0), rtol=0.03)
    assert (each.mean(0) >= -(2**-each).mean(0).log2()).all()


def test_bad_input_of_ardm():
    m, (tokens, cond) = model(MaskedAR, (2, 3)), batch((2, 3))
    losses = torch.rand(6)
    refuses(lambda: ardm.schedule(losses, 0), "6 tokens can be drawn in 1 to 6 steps, not in 0")
    refuses(lambda: ardm.schedule(losses, 7), "6 tokens can be drawn in 1 to 6 steps, not in 7")
    refuses(lambda: ardm.schedule(losses * math.nan, 2), "losses must be finite, got nan")
    refuses(lambda: ardm.schedule(torch.rand(2, 3), 2), "losses must be (N,), one for each number of known tokens")
    refuses(lambda: ardm.loss_curve(m, tokens, cond, 0), "orders must be a number in [1, inf], got 0")
    refuses(lambda: ardm.bits(m, tokens, cond, 0), "orders must be a number in [1, inf], got 0")
    refuses(lambda: ardm.bits(m, tokens, cond, 1, (3, 4)), "steps of 7 slots in all do not fit 6 positions")
    refuses(lambda: ardm.loss_curve(m, tokens[:, :4], cond), "an image has 6 tokens, got 4 per row")


PLANS = {
    "raster": lambda: raster(4, 4),
    "random": lambda: random_order(4, 4, generator=seeded()),
    "regions": lambda: region_groups(4, 4, 2),
    "all at once": lambda: rows(4, 4, 16),
}


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", [NextStepAR, AnyOrderAR, MaskedAR])
def test_coding(family, plan, words):
    coding(family, PLANS[plan](), words)


def test_an_image_that_is_expected_needs_few_bits_and_any_other_comes_back():
    m, plan, y = trained(PLAIN, 100, raster(1, 8)), raster(1, 8), ZERO
    assert len(ardm_coder.encode(m, PLAIN[2:3], y, plan)) == 1 < len(ardm_coder.encode(m, CYCLES[2:3], y, plan)) / 3
    for code in (b"", b"\0", b"minar and more", bytes(range(200, 256))):
        drawn = ardm_coder.decode(code, m, y, plan)  # any bytes are some image
        assert torch.equal(ardm_coder.decode(ardm_coder.encode(m, drawn, y, plan), m, y, plan), drawn)


def test_bad_input_of_the_coder():
    m, (tokens, cond) = model(MaskedAR), batch()
    two = "the coder takes one image at a time, got 2 conditions"
    refuses(lambda: ardm_coder.encode(m, tokens, cond, raster(4, 4)), two)
    refuses(lambda: ardm_coder.decode(b"", m, cond, raster(4, 4)), two)
    refuses(lambda: ardm_coder.encode(m, tokens, cond[:1], raster(4, 4)), "one condition per row of tokens")
    refuses(lambda: ardm_coder.decode(b"", m, cond[:1], raster(2, 4)), "the plan has 8 slots")
    refuses(lambda: ardm_coder.decode(b"", m, cond[:1], random_order(4, 4, 1)), "one image has one order")


# sigma-GPT.


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
def test_side_by_side_is_alone(words, cfg):
    alone(words, cfg)


@pytest.mark.parametrize("n_orders", [1, 5])
@pytest.mark.parametrize("redraw", [False, True])
def test_independent_tokens_are_settled_in_one_burst(n_orders, redraw):
    m = model()
    for part in (m.embed, m.cond.table, *(block.attn.out for block in m.trunk.blocks)):
        part.weight.data.zero_()
    tokens, passes = sigma_gpt.decode(m, ZERO, n_orders, redraw=redraw, generator=seeded())
    assert passes == 2 and tokens.shape == (1, 16) and tokens.unique().numel() > 2


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_passes_are_counted_and_what_is_known_stays(cfg, words):
    m, (tokens, cond) = model(words=words), batch(words=words, rows=1)
    given, seen = torch.rand(16, generator=seeded(1)) < 0.4, []
    m.trunk.register_forward_hook(lambda *_: seen.append(1))
    drawn, passes = sigma_gpt.decode(m, cond, cfg=cfg, generator=seeded(), known=(given, tokens[0]))
    assert passes == len(seen) <= 2 * int((~given).sum())
    assert torch.equal(drawn[0, given], tokens[0, given]) and not torch.equal(drawn, tokens)
    again, _ = sigma_gpt.decode(m, cond, cfg=cfg, generator=seeded(), known=(given, tokens[0]))
    assert torch.equal(drawn, again)
    nothing = (torch.zeros(16).bool(), tokens[0])
    free, _ = sigma_gpt.decode(m, cond, cfg=cfg, generator=seeded(2), known=nothing)
    assert torch.equal(free, sigma_gpt.decode(m, cond, cfg=cfg, generator=seeded(2))[0])


def test_more_orders_take_fewer_passes():
    m, mean = model(), []
    for n_orders in (1, 5, 20):
        generator = seeded()
        mean.append(sum(sigma_gpt.decode(m, ZERO, n_orders, generator=generator)[1] for _ in range(25)) / 25)
    assert 16 > mean[0] > mean[1] > mean[2]


def test_the_rule_of_the_paper_is_not_exact():
    """Two tokens: what fails is asked for again, so it comes with min(p, q) + (1 - sum min(p, q)) q instead of q."""
    m, generator = toy(2), seeded()
    biased, right = torch.zeros(3, 3), exact(m, [(0, 1), (1, 0)])
    for order in ((0, 1), (1, 0)):
        q = exact(m, [order]).view(3, 3)  # of images; the second position along the order comes first if it is (1, 0)
        q = q if order == (0, 1) else q.T
        first = q.sum(1)
        other = exact(m, [order[::-1]]).view(3, 3)
        p = other.sum(0) if order == (0, 1) else other.sum(1)  # the later token, if it came first
        least = torch.minimum(p, q / first[:, None])
        drawn = first[:, None] * (least + (1 - least.sum(1, keepdim=True)) * q / first[:, None])
        biased += (drawn if order == (0, 1) else drawn.T) / 2
    counts = count(lambda: sigma_gpt.decode(m, ZERO, 1, generator=generator)[0], 900, 9)
    agrees(counts, biased.flatten())
    with pytest.raises(AssertionError):
        agrees(counts, right)


def test_a_trained_model_draws_images_in_few_passes():
    """The first token of an image says all of it: two bursts, and infilling is right, too."""
    m, generator = trained(PLAIN, 150, lambda batch, done: random_order(1, 8, batch)), seeded()
    drawn, passes = zip(*(sigma_gpt.decode(m, ZERO, generator=generator) for _ in range(20)))
    assert (torch.cat(drawn) == torch.cat(drawn)[:, :1]).all(1).sum() >= 18 and sum(passes) / 20 < 5
    assert len(torch.cat(drawn).unique()) > 2
    given = torch.arange(8) == 5
    filled = [sigma_gpt.decode(m, ZERO, generator=generator, known=(given, x))[0] for x in PLAIN]
    assert (torch.cat(filled) == PLAIN).all(1).sum() >= 5


def test_bad_input_of_bursts():
    m, (tokens, cond) = model(), batch(rows=1)

    def burst(**more):
        return lambda: sigma_gpt.decode(more.pop("m", m), more.pop("cond", cond), **more)

    refuses(burst(n_orders=0), "n_orders must be a number in [1, inf], got 0")
    refuses(burst(cfg=-1.0), "cfg must be a number in [0, inf], got -1.0")
    refuses(burst(cond=torch.tensor([0, 1])), "burst sampling draws one image at a time, got 2 conditions")
    refuses(burst(cond=torch.tensor([9])), "label must lie in 0..5")
    refuses(burst(m=model(MaskedAR)), "burst sampling needs a NextStepAR, got MaskedAR", TypeError)
    refuses(burst(order=torch.zeros(16).long()), "pos must hold 0..15 once each: some overlap or are missing")
    refuses(burst(order=torch.arange(9)), "the plan has 9 slots, the model's images have 16 tokens")
    refuses(burst(order=torch.arange(16)[None]), "one image has one order, (N,): got (1, 16)")
    refuses(burst(order=torch.arange(16.0)), "pos must be a tensor of torch.long", TypeError)
    everything = torch.ones(16).bool()
    refuses(burst(known=(everything, tokens[0])), "all tokens are known: there is nothing to draw")
    refuses(burst(known=(everything[:4], tokens[0])), "known must be (16,) bool and as many tokens")
    refuses(burst(known=(everything.long(), tokens[0])), "known must be (16,) bool and as many tokens")
    one = torch.arange(16) == 1
    refuses(burst(known=(one, tokens[0] + V)), "tokens must lie in 0..23")


# Planted bugs.

BUGS = {}


def bug(name, law, says):
    def keep(plant):
        BUGS[name] = law, plant, says
        return plant

    return keep


@bug("it anneals from the beginning", annealing, "of the rows are shuffled")
def _(m):
    m.setattr(rar, "share_random", lambda done, start, end: max(0.0, (end - done) / end))


@bug("the probability is that of raster", annealing, "of the rows are shuffled")
def _(m):
    right = rar.share_random
    m.setattr(rar, "share_random", lambda *args: 1 - right(*args))


@bug("all rows are random or none", annealing, "of the rows are shuffled")
def _(m):
    right = rar.share_random
    m.setattr(rar, "share_random", lambda *args: float(torch.rand(()) < right(*args)))


@bug("one order for all rows", annealing, "some orders never come")
def _(m):
    m.setattr(rar, "random_order", lambda h, w, batch: Plan(random_order(h, w).pos.expand(batch, -1), (1,) * (h * w)))


@bug("one token more is known", curve, "known a token costs")
def _(m):
    m.setattr(ardm, "Plan", lambda pos, sizes: Plan(pos.roll(1, 1), sizes))


@bug("bits of a token are called bits of the image", curve, "the curve adds up to")
def _(m):
    m.setattr(ardm, "bits", lambda *a, right=ardm.bits, **k: right(*a, **k) / 6)


@bug("nats are called bits", curve, "the curve adds up to")
def _(m):
    m.setattr(ardm, "bits", lambda *a, right=ardm.bits, **k: right(*a, **k) * math.log(2))


@bug("steps are equal", cheapest, "loses")
def _(m):
    def equal(losses, budget):
        n = len(losses)
        return tuple(n * (s + 1) // budget - n * s // budget for s in range(budget))

    m.setattr(ardm, "schedule", equal)


@bug("a step costs what its last token would", cheapest, "loses")
def _(m):
    m.setattr(ardm, "schedule", lambda losses, budget, right=ardm.schedule: right(losses.flip(0), budget)[::-1])


@bug("fewer steps than were paid for", cheapest, "are not")
def _(m):
    m.setattr(ardm, "schedule", lambda losses, budget, right=ardm.schedule: right(losses, max(1, budget - 1)))


@bug("what was coded by slot is taken by position", coding, "another image came back")
def _(m):
    m.setattr(ardm_coder, "decode", lambda *a, right=ardm_coder.decode: a[-1].permute(right(*a)))


@bug("all codes have the same share", coding, "bits for an nll of")
def _(m):
    m.setattr(ardm_coder, "shares", lambda logits, right=ardm_coder.shares: right(torch.zeros_like(logits)))


@bug("the last byte is lost", coding, "another image came back")
def _(m):
    m.setattr(ardm_coder, "encode", lambda *a, right=ardm_coder.encode: right(*a)[:-1])


@bug("a probability may be rounded to zero", sharp, "negative shift count")
def _(m):
    def wrong(logits):
        parts = (logits.double().softmax(-1) * 2**ardm_coder.PRECISION).long()
        return torch.cat([torch.zeros_like(parts[:, :1]), parts.cumsum(-1)], -1)

    m.setattr(ardm_coder, "shares", wrong)


@bug("orders see each other", alone, "an order sees another")
def _(m):
    m.setattr(sigma_gpt, "side_by_side", lambda *a, right=sigma_gpt.side_by_side: torch.ones_like(right(*a)).tril(a[1]))


@bug("an order does not see itself", alone, "an order sees another")
def _(m):
    def blind(n_mute, n, n_new, K, T, right=sigma_gpt.side_by_side):
        return right(n_mute, n, n_new, K * T, 1)

    m.setattr(sigma_gpt, "side_by_side", blind)


@bug("what is only asked stays in the cache", alone, "must match the size")
def _(m):
    m.setattr(KVCache, "advance", lambda self, n: setattr(self, "n", self.n + max(n, 1)))


@bug("everything passes", passing, "of the time, its p is")
def _(m):
    m.setattr(sigma_gpt, "verify", lambda draft, p, q, generator: torch.full((len(draft),), draft.shape[1]))


@bug("the ratio is upside down", passing, "of the time, its p is")
def _(m):
    right = sigma_gpt.verify
    m.setattr(sigma_gpt, "verify", lambda draft, p, q, generator: right(draft, q, p, generator))


@bug("what fails is drawn from q", bursting, "chi^2 is")
def _(m):
    """The rule of the paper, in effect."""
    m.setattr(sigma_gpt, "decode", lambda *a, right=sigma_gpt.decode, redraw=True, **k: right(*a, **k))


@bug("the longest of five orders is kept", bursting, "chi^2 is")
def _(m):
    m.setattr(sigma_gpt, "decode", lambda m, y, n, right=sigma_gpt.decode, **k: right(m, y, 5, **k))


@bug("what is known is drawn as well", following, "impossible")
def _(m):
    right = sigma_gpt.start
    m.setattr(sigma_gpt, "start", lambda model, y, known, order, g: right(model, y, None, order, g))


@bug("an order that is given is not followed", following, "chi^2 is")
def _(m):
    m.setattr(sigma_gpt, "draw_turns", lambda left, n, order, g, right=sigma_gpt.draw_turns: right(left, n, None, g))


def test_every_law_catches_something():
    assert {law for law, *_ in BUGS.values()} >= set(LAWS)


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{law.__name__}: {name}") for name, (law, *_) in BUGS.items()])
def test_planted_bug_is_caught(name, monkeypatch):
    law, plant, says = BUGS[name]
    plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, RuntimeError)) as error:
        law()
    assert says in str(error.value)
