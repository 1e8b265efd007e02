"""ARPG, RandAR, MaskGIT, MaskGIL: the laws of models, what the papers promise, and planted bugs."""

import importlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from families import V, batch, model
from test_models import PLANS, judge

from minar import KVCache, MaskedAR, NextStepAR, Plan, Transformer, fast, generate, laws, model_laws
from minar.any_order import AnyOrderAR
from minar.lab import checkpoint
from minar.papers import jacobi, maskgil, maskgit
from minar.papers.arpg import ARPG
from minar.papers.blockwise import Blockwise
from minar.papers.maskgil import MaskGIL, ramp, random_mask
from minar.papers.randar import RandAR
from minar.plan import arccos_sizes, completing, cosine_sizes, halton, random_order, random_sets, raster, rows
from minar.transformer import rotate

MODELS = {
    "ARPG": lambda *args, **more: model(ARPG, *args, n_cross=2, **more),
    "RandAR": lambda *args, **more: model(RandAR, *args, **more),
    "MaskGIL": lambda *args, **more: model(MaskGIL, *args, **more),
}
ASKING = ("ARPG", "RandAR")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_by_one(plan):
    return Plan(plan.pos, (1,) * plan.n)


# The laws of models.


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_laws(name, plan, words):
    judge(MODELS[name](words=words), *batch(words=words), PLANS[plan]())


@pytest.mark.parametrize("plan", ["rows", "random per row", "shrinking"])
@pytest.mark.parametrize("name", ASKING)
def test_laws_on_continuous_tokens(name, plan):
    judge(MODELS[name](continuous=True), *batch(continuous=True), PLANS[plan]())


@pytest.mark.parametrize("name", MODELS)
def test_laws_on_new_plans(name):
    for plan in (halton(3, 4, (1, 3, 3, 5)), completing(torch.arange(12) % 5 == 0, 3, seeded())):
        judge(MODELS[name]((3, 4)), *batch((3, 4)), plan)


@pytest.mark.parametrize("plan", ["raster", "sets per row"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_waits_for_a_value_and_everything_is_trained(name, plan):
    model_laws.check_meta(MODELS[name](words=3), *batch(words=3), PLANS[plan]())
    laws.check_all_trained(MODELS[name](words=3), *batch(words=3), PLANS[plan]())


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (1,) * 16], ids=["sets", "one by one"])
@pytest.mark.parametrize("name", ASKING)
def test_one_graph(name, sizes):
    orders = [random_order(4, 4, generator=seeded(i)).pos for i in range(3)]
    model_laws.check_one_graph(MODELS[name](), *batch(), lambda i: Plan(orders[i], sizes))


@pytest.mark.parametrize("name", MODELS)
def test_the_probabilities_of_all_images_add_up_to_one(name):
    everything = torch.tensor(list(itertools.product(range(3), repeat=3)))
    m, label = MODELS[name]((1, 3), vocab=3), torch.zeros(27, dtype=torch.long)
    for plan in (raster(1, 3), random_order(1, 3), rows(1, 3, 3), Plan(torch.tensor([1, 0, 2]), (1, 2))):
        p = (-m.nll(everything, label, plan).sum(1)).exp().detach()
        assert abs(float(p.sum()) - 1) < 1e-5 and p.std() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_checkpoint_and_fast_decoding(name, tmp_path):
    m, (_, cond), plan = MODELS[name](), batch(), PLANS["sets per row"]()
    tokens = generate(m, cond, plan, 2.0, temperature=0)
    again = checkpoint.load(checkpoint.save(tmp_path / "m.safetensors", m))
    assert torch.equal(generate(again, cond, plan, 2.0, temperature=0), tokens)
    assert torch.equal(fast.generate(m, cond, plan, 2.0, temperature=0), tokens)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_known_stays_and_is_looked_at(name):
    """In- and outpainting: no training for it, any set of known places."""
    m, (tokens, cond), known = MODELS[name](), batch(), torch.arange(16) % 4 < 2
    for order in (None, halton(4, 4, 4), random_order(4, 4, 2, seeded())):
        plan = completing(known, 3, seeded(), order)
        painted = generate(m, cond, plan, 2.0, prompt=tokens, prompt_steps=1, temperature=0)
        assert torch.equal(painted[:, known], tokens[:, known]) and not torch.equal(painted, tokens)
        other = generate(m, cond, plan, 2.0, prompt=(tokens + 1) % V, prompt_steps=1, temperature=0)
        assert not torch.equal(painted[:, ~known], other[:, ~known])


# What each promises.


def cached_bytes(m, plan, cond):
    cache = KVCache(16)
    m.hidden(torch.zeros(len(cond), 16, dtype=torch.long), m.prefix(cond), plan, cache=cache)
    return cache.n, cache.bytes


@pytest.mark.parametrize("m", [2, 3])
def test_arpg_caches_half_and_one_layer(m):
    """(m + 1) / 2m of the bytes of a GPT of 2m layers, for as many slots."""
    (_, cond), parts = batch(), model()
    inner = parts.embed, parts.cond, parts.head, parts.grid
    arpg = ARPG(Transformer(32, m, 2, hidden=32), *inner, n_cross=m)
    gpt = NextStepAR(Transformer(32, 2 * m, 2, hidden=32), *inner)
    (n, small), (n_gpt, large) = cached_bytes(arpg, raster(4, 4), cond), cached_bytes(gpt, raster(4, 4), cond)
    assert n == n_gpt == 16 and small * 2 * m == large * (m + 1)


def split(x):
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


def arpg_by_the_paper():
    """In raster order, written out: ask i is a softmax over what the class and tokens 0 .. i-1 have become."""
    m, (tokens, cond), place = MODELS["ARPG"](), batch(), torch.arange(16)
    x = torch.cat([m.prefix(cond), m.embed(tokens[:, :-1])], 1)
    h = m.trunk(x, "causal", m.rope(place - 1))  # the class stands at -1, nowhere
    k, v = m.kv(h).chunk(2, -1)
    k, a = rotate(split(k), m.rope(place - 1)), (m.blank + m.target(place)).expand(2, -1, -1)
    for block in m.cross:
        scores = rotate(split(block.q(block.norm1(a))), m.rope(place)) @ k.transpose(-1, -2) / 4
        weights = scores.masked_fill(~torch.ones(16, 16).tril().bool(), -torch.inf).softmax(-1)
        a = a + block.out((weights @ split(v)).transpose(1, 2).flatten(2))
        a = a + block.mlp(block.norm2(a))
    gap = (m.norm(a) - m.hidden(tokens, m.prefix(cond), raster(4, 4))).abs().max()
    assert gap <= 1e-4, f"it is not what the paper computes: {gap:.2g}"


def test_arpg_is_the_papers():
    arpg_by_the_paper()


def test_arpg_can_be_asked_twice():
    m, (tokens, cond), plan = MODELS["ARPG"](), batch(), rows(4, 4, 4)
    x, prefix, cache = plan.permute(tokens), m.prefix(cond), KVCache(17)
    once = m.hidden(x, prefix, plan, 0, 3, cache)
    again = m.hidden(x, prefix, plan, 2, 3, cache)  # nothing new to read
    assert cache.n == 9 and torch.allclose(once[:, 8:], again, atol=1e-5)


def test_arpg_has_twins_in_the_first_step_of_the_paper_alone():
    """The class stands nowhere, so rotary angles alone cannot tell first asks apart; later ones they can."""
    m, (tokens, cond) = MODELS["ARPG"](), batch()
    m.target.weight.data.zero_()
    with pytest.raises(AssertionError, match="two slots of step 0 are twins"):
        model_laws.check_no_twins(m, tokens, cond, rows(4, 4, 4))
    model_laws.check_no_twins(m, tokens, cond, Plan(torch.arange(16), (1, 5, 5, 5)))


def test_randar_needs_no_target():
    """An instruction is rotated before the trunk, so it says where even when nothing else is known."""
    m = MODELS["RandAR"]()
    m.target.weight.data.zero_()
    judge(m, *batch(), rows(4, 4, 4))


def randar_by_training(words=0):
    """The first token of each step is asked behind the sequence of training, whatever the steps before were."""
    m, (tokens, cond) = MODELS["RandAR"](words=words), batch(words=words)
    plan = Plan(random_order(4, 4, 2, seeded()).pos, (3, 4, 1, 6, 2))
    x, prefix = plan.permute(tokens), m.prefix(cond)
    trained = m.hidden(x, prefix, one_by_one(plan))
    asked = m.hidden(x, prefix, plan)
    first = list(plan.starts[:-1])
    gap = (asked[:, first] - trained[:, first]).abs().max()
    assert gap <= 1e-4, f"a step's first token is not asked as in training: {gap:.2g}"
    sets, singles = KVCache(40), KVCache(40)
    for s in range(plan.n_steps):
        m.hidden(x, prefix, plan, s, s + 1, sets)
    for s in range(16):
        m.hidden(x, prefix, one_by_one(plan), s, s + 1, singles)
    assert sets.n == prefix.shape[1] + 2 * 14 and singles.n == prefix.shape[1] + 2 * 16 - 1
    for layer in range(2):
        for ours, theirs in zip(sets.layers[layer], singles.layers[layer]):
            gap = (ours - theirs)[:, :, : sets.n].abs().max()
            assert gap <= 1e-4, f"the cache is not the sequence of training: {gap:.2g}"


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
def test_randar_keeps_the_sequence_of_training(words):
    randar_by_training(words)


def test_randar_takes_the_steps_of_the_paper():
    """Running totals of the released code: 1 first, then N (1 - cos(pi/2 (s+1)/T)) + 1, at least one more each."""
    for n_steps in (32, 64, 88):
        sizes, done = [1], 1
        for s in range(1, n_steps):
            total = min(256, int((1 - math.cos(math.pi / 2 * (s + 1) / n_steps)) * 256 + 1))
            sizes.append(max(1, total - done))
            done += sizes[-1]
        assert tuple(sizes) == cosine_sizes(256, n_steps)
    assert cosine_sizes(256, 88)[:25] == (1,) * 24 + (2,) and cosine_sizes(256, 88)[-8:] == (5, 4) * 4


@pytest.mark.parametrize("window", [1, 2, 3, 40])
@pytest.mark.parametrize("name", ASKING)
def test_guess_and_verify(name, window):
    m, (_, cond), plan = MODELS[name](), batch(rows=3), random_order(4, 4, generator=seeded())
    greedy = generate(m, cond, plan, 2.0, temperature=0)
    for rows_ in (slice(0, 3), slice(1, 2)):
        assert torch.equal(jacobi.decode(m, cond[rows_], plan, window, 2.0, temperature=0)[0], greedy[rows_])
    b = laws.wake(Blockwise(m, window, 16))
    greedy = generate(m, cond, plan, 2.0, temperature=0)
    assert torch.equal(b.decode(cond, plan, 2.0)[0], greedy)


# MaskGIT's decoding.


def maskgit_settles():
    """Each row settles as many tokens a step as it should, each once, in an order of its own; what is known stays."""
    m, (tokens, cond) = model(MaskedAR), batch(rows=4)
    known = torch.arange(16) % 5 == 0
    for marked, sizes in ((None, (2, 3, 5, 6)), (known, (1, 4, 7))):
        prompt = None if marked is None else tokens
        drawn, step = maskgit.decode(m, cond, sizes, 2.0, generator=seeded(), prompt=prompt, known=marked)
        counts = torch.stack([(step == s).sum(1) for s in range(4)], 1)
        wanted = sizes if marked is None else (4, *sizes)
        assert counts.eq(torch.tensor(wanted)).all(), f"rows settle {counts.tolist()} tokens a step, not {wanted}"
        assert len({tuple(row) for row in step.tolist()}) == 4, "all rows settle their tokens in the same order"
        if marked is not None:
            assert torch.equal(drawn[:, known], tokens[:, known]), "a known token was changed"
            assert (step[:, known] == 0).all() and (step[:, ~known] > 0).all(), "a known token is settled late"


def maskgit_keeps_the_surest():
    """Without noise, against a plain loop over rows and slots: the largest probabilities of what was guessed."""
    m, (_, cond) = model(MaskedAR), batch(rows=3)
    drawn, step = maskgit.decode(m, cond, (2, 5, 9), 2.0, temperature=0, choice=0)
    tokens, prefix = torch.zeros(3, 16, dtype=torch.long), m.prefix(cond, guided=True)
    settled = torch.full((3, 16), 3)
    for s, size in enumerate((2, 5, 9)):
        known = settled < 3
        h = m.look(tokens.repeat(2, 1), prefix, raster(4, 4), known.repeat(2, 1)).chunk(2)
        best = m.head.logits(*h, 2.0).softmax(-1).max(-1)
        for row in range(3):
            hidden = [i for i in range(16) if not known[row, i]]
            for i in sorted(hidden, key=lambda i: -best.values[row, i])[:size]:
                tokens[row, i], settled[row, i] = best.indices[row, i], s
    assert torch.equal(drawn, tokens) and torch.equal(step, settled), "it does not keep what it is surest of"


def maskgit_noise_is_gumbel():
    """The slot of the largest log p + Gumbel is slot i with probability p_i / sum p: a softmax over slots."""
    logits = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [3.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
    guess, hidden = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[True, True, True, False]])
    p = logits.softmax(-1).gather(-1, guess[..., None])[0, :, 0] * hidden[0]

    def draw(n):
        args = (x.expand(n, *x.shape[1:]) for x in (logits, guess, hidden))
        return maskgit.choose(*args, 1, 1.0, seeded()).long().argmax(-1)

    laws.check_sampler(draw, p / p.sum())


def maskgit_noise_fades():
    """choice * (1 - (t + 1) / T) in step t of T, which is 0 in the last."""
    seen, right = [], maskgit.choose

    def spy(logits, guess, hidden, n, noise, generator):
        seen.append(noise)
        return right(logits, guess, hidden, n, noise, generator)

    (tokens, cond), known = batch(), torch.arange(16) < 4
    with pytest.MonkeyPatch.context() as m:
        m.setattr(maskgit, "choose", spy)
        maskgit.decode(model(MaskedAR), cond, 4, choice=2.0)
        maskgit.decode(model(MaskedAR), cond, 4, choice=2.0, prompt=tokens, known=known)
    assert seen == [1.5, 1.0, 0.5, 0.0] * 2, f"the noise is {seen}"


MASKGIT = (maskgit_settles, maskgit_keeps_the_surest, maskgit_noise_is_gumbel, maskgit_noise_fades)


@pytest.mark.parametrize("law", MASKGIT)
def test_maskgit(law):
    law()


@pytest.mark.parametrize("cfg", [1.0, 2.0, ramp(3.0)], ids=["plain", "guided", "ramp"])
def test_maskgit_with_a_fixed_order_is_generate(cfg, monkeypatch):
    m, (tokens, cond), known = model(MaskedAR), batch(), torch.arange(16) % 3 == 0
    for plan, given in (
        (random_sets(4, 4, 5, generator=seeded()), {}),
        (completing(known, 4, seeded()), {"known": known}),
    ):
        settled_at, steps = plan.unpermute(plan.step[None])[0], itertools.count(len(given))
        at = Plan(completing(known, 4, order=raster(4, 4)).pos, plan.sizes) if given else raster(4, 4)  # its slots
        chosen = lambda logits, guess, hidden, *_: at.permute(settled_at[None] == next(steps)).expand_as(hidden)  # noqa: E731, B023
        monkeypatch.setattr(maskgit, "choose", chosen)
        prompt = {"prompt": tokens} if given else {}
        ours, step = maskgit.decode(m, cond, plan.sizes[len(given) :], cfg, 0, **given, **prompt)
        assert torch.equal(ours, generate(m, cond, plan, cfg, **prompt, prompt_steps=len(given), temperature=0))
        assert torch.equal(step, settled_at.expand(2, -1))


def test_maskgit_draws_the_official_numbers():
    assert cosine_sizes(256, 12) == (3, 6, 11, 15, 18, 22, 26, 27, 31, 31, 33, 33)
    m, (_, cond) = model(MaskedAR, (16, 16)), batch(rows=1)
    _, step = maskgit.decode(m, cond, 8)
    assert step.flatten().bincount().tolist() == [5, 15, 24, 31, 39, 45, 48, 49]


def test_maskgit_is_repeatable_and_obeys_the_knobs():
    m, (_, cond) = model(MaskedAR), batch()
    draw = lambda seed, **knobs: maskgit.decode(m, cond, 5, generator=seeded(seed), **knobs)  # noqa: E731
    for a, b in zip(draw(0), draw(0)):
        assert torch.equal(a, b)
    assert not torch.equal(draw(0)[0], draw(1)[0])
    assert torch.equal(draw(0, top_k=1, choice=0)[0], draw(1, temperature=0, choice=0)[0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sizes": 4, "choice": -1}, "choice must be a number"),
        ({"sizes": 17}, "16 tokens can be drawn in 1 to 16 steps, not in 17"),
        ({"sizes": 0}, "16 tokens can be drawn in 1 to 16 steps, not in 0"),
        ({"sizes": (8, 7)}, "steps of 15 slots in all do not fit 16"),
        ({"sizes": (8, 0, 8)}, "at least one slot"),
        ({"sizes": 4, "known": 16}, "16 of 16 tokens are known"),
        ({"sizes": 4, "known": 0}, "0 of 16 tokens are known"),
        ({"sizes": 9, "known": 8}, "8 tokens can be drawn in 1 to 8 steps, not in 9"),
        ({"sizes": (8, 8), "known": 8}, "steps of 24 slots in all do not fit 16"),
        ({"sizes": 4, "known": 8, "prompt": None}, "prompt and known go together"),
        ({"sizes": 4, "cfg": -1.0}, "cfg must be a number"),
        ({"sizes": 4, "temperature": -1.0}, "temperature must be a number"),
    ],
)
def test_maskgit_says_what_is_wrong(arguments, says):
    tokens, cond = batch()
    if "known" in arguments:
        arguments = {"prompt": tokens, **arguments, "known": torch.arange(16) < arguments["known"]}
    with pytest.raises(ValueError, match=says):
        maskgit.decode(model(MaskedAR), cond, **arguments)


# MaskGIL's training.


def test_a_mask_hides_something_in_every_row():
    """By rounding up; on the average 2 / pi of the tokens, and each place as often as any other."""
    for n in (1, 2, 16):
        hidden = random_mask(20_000, n)
        assert hidden.any(1).all()
    share = hidden.float().mean(0)
    assert abs(float(share.mean()) - 2 / math.pi - 0.5 / 16) < 0.01 and share.std() < 0.01
    assert hidden.sum(1).unique().tolist() == list(range(1, 17)), "any number may be hidden, all of them included"


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24], ids=["all", "one"])
def test_the_ends_of_the_mask(u, monkeypatch):
    right = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *s, **k: torch.full(s, u) if s[-1] == 1 else right(*s, **k))
    assert (random_mask(50, 256).sum(1) == (256 if u == 0 else 1)).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_maskgil_loss(smoothing, monkeypatch):
    """Smoothed cross-entropy of all tokens, hidden or not, written out."""
    m, (tokens, cond), plan = MODELS["MaskGIL"](smoothing=smoothing), batch(), PLANS["sets per row"]()
    hidden = torch.rand(2, 16, generator=seeded()) < 0.5
    monkeypatch.setattr(maskgil, "random_mask", lambda *args: hidden)
    x = plan.permute(tokens)
    log_p = m.head.logits(m.look(x, m.prefix(cond), plan, ~hidden)).log_softmax(-1)
    right = F.one_hot(x, V) * (1 - smoothing) + smoothing / V
    assert abs(m(tokens, cond, plan, p_drop=0.0) + (right * log_p).sum(-1).mean()) < 1e-5
    forgotten = m(tokens, m.cond.null(cond), plan, p_drop=0.0)
    assert abs(m(tokens, cond, plan, p_drop=1.0) - forgotten) < 1e-5
    noised = m(tokens, cond, plan, p_drop=0.0, inputs=(tokens + 1) % V)
    assert abs(noised - m(tokens, cond, plan, p_drop=0.0)) > 1e-4, "inputs are not read"


def test_the_ramp_is_the_papers():
    plan, c, u = Plan(torch.arange(256), arccos_sizes(256, 8)), torch.randn(5), torch.randn(5)
    for i in range(8):
        w = 3 * i / 7
        assert torch.allclose(u + ramp(3.0)(plan, i) * (c - u), (1 + w) * c - w * u, atol=1e-5)
    assert ramp(3.0)(rows(4, 4, 16), 0) == 1
    with pytest.raises(ValueError, match="scale must be a number"):
        ramp(-1.0)


def test_maskgil_decodes_in_eight_steps():
    m, (_, cond) = MODELS["MaskGIL"]((16, 16)), batch(rows=1)
    tokens, step = maskgit.decode(m, cond, arccos_sizes(256, 8), ramp(3.0), choice=4.5 * 8 / 7, generator=seeded())
    assert step.flatten().bincount().tolist() == [21, 21, 21, 23, 25, 28, 35, 82] and tokens.unique().numel() > 2


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, math.nan])
def test_smoothing_must_leave_something_of_the_tokens(smoothing):
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\)"):
        MODELS["MaskGIL"](smoothing=smoothing)


def test_arpg_needs_a_half_that_asks():
    with pytest.raises(ValueError, match="at least one layer"):
        model(ARPG, n_cross=0)


# Two tokens that are always the same: what parallel drawing costs, and what does not help.

PAIRS, ORDERS = torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [1, 0]])


def see_each_other(monkeypatch):
    """The negative control: asks of one step look at each other."""
    monkeypatch.setattr(ARPG, "ask", arpg_asks_that_see_each_other)
    change_mask(monkeypatch, RandAR)
    change_mask(monkeypatch, AnyOrderAR)


def arpg_asks_that_see_each_other(self, place, k, v, mask):
    x, rope = (self.blank + self.target(place)).expand(len(k), -1, -1), self.rope(place)
    own_k, own_v = self.kv(x).unflatten(-1, (2, self.trunk.n_heads, -1)).permute(2, 0, 3, 1, 4)
    k, v = torch.cat([k, rotate(own_k, rope)], 2), torch.cat([v, own_v], 2)
    mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), len(mask))], 1)
    for block in self.cross:
        x = block(x, k, v, mask, rope)
    return self.norm(x)


def change_mask(monkeypatch, cls):
    right = cls._mask

    def wrong(self, plan, P, n_new, end, asked):
        mask = right(self, plan, P, n_new, end, asked).clone()
        mask[n_new:, P + end :] = True
        return mask

    monkeypatch.setattr(cls, "_mask", wrong)


def learn(m, together):
    """150 steps on both pairs in both orders. together: also on plans that draw the two in one step."""
    torch.manual_seed(0)
    m.head.weight.data.zero_()
    optimizer = torch.optim.AdamW(m.parameters(), 1e-2)
    tokens, cond, orders = PAIRS.repeat(2, 1), torch.zeros(4, dtype=torch.long), ORDERS.repeat_interleave(2, 0)
    plans = [Plan(orders, (1, 1)), *([Plan(orders, (2,))] if together else [])]
    for _ in range(150):
        optimizer.zero_grad()
        sum(m(tokens, cond, plan, p_drop=0.0) for plan in plans).backward()
        optimizer.step()
    return m


def broken(tokens):
    return float((tokens[:, 0] != tokens[:, 1]).float().mean())


@pytest.mark.parametrize(
    ("name", "asks"),
    [*itertools.product(ASKING, ["apart", "see each other"]), ("MaskGIL", "apart")],
)
def test_two_tokens_that_depend_on_each_other_must_not_be_drawn_together(name, asks, monkeypatch):
    """One by one: ln 2 nats and no broken pair. In one step: 2 ln 2 nats, half of them broken. No ask knows what
    another will draw, so letting asks see each other changes nothing.
    """
    if asks == "see each other":
        see_each_other(monkeypatch)
    more = {"smoothing": 0.0} if name == "MaskGIL" else {}
    m = learn(MODELS[name]((1, 2), vocab=2, **more), together=asks == "see each other")
    cond = torch.zeros(2000, dtype=torch.long)
    for sizes, nats, share in (((1, 1), 1, 0.0), ((2,), 2, 0.5)):
        for order in ORDERS:
            plan = Plan(order, sizes)
            assert abs(float(m.nll(PAIRS, cond[:2], plan).sum(1).mean()) - nats * math.log(2)) < 0.05
            drawn = generate(m, cond, plan, generator=seeded())
            assert abs(broken(drawn) - share) < 0.05, f"{broken(drawn):.0%} of the pairs are broken in steps {sizes}"


def test_maskgit_breaks_pairs_that_it_settles_in_one_step():
    m, cond = learn(model(MaskedAR, (1, 2), vocab=2), together=False), torch.zeros(2000, dtype=torch.long)
    together, _ = maskgit.decode(m, cond, 1, generator=seeded())
    in_turn, step = maskgit.decode(m, cond, 2, generator=seeded())
    assert abs(broken(together) - 0.5) < 0.1 and broken(in_turn) < 0.02
    assert 0.4 < float(step[:, 0].float().mean()) < 0.6, "either token is first in half of the images"


# Planted bugs: each is caught by the law that it is named with. The test ids are the table.


def parallel(name):
    model_laws.check_parallel(MODELS[name](), *batch(), rows(4, 4, 4))


def cache(name):
    model_laws.check_cache(MODELS[name](), *batch(), rows(4, 4, 4))


def cache_one_by_one(name):
    model_laws.check_cache(MODELS[name](), *batch(), raster(4, 4))


def peeking(name):
    model_laws.check_no_peeking(MODELS[name](), *batch(), rows(4, 4, 4))


def peeking_one_by_one(name):
    model_laws.check_no_peeking(MODELS[name](), *batch(), raster(4, 4))


def twins(name):
    model_laws.check_no_twins(MODELS[name](), *batch(), rows(4, 4, 4))


def twins_without_target(name):
    m = MODELS[name]()
    m.target.weight.data.zero_()
    model_laws.check_no_twins(m, *batch(), rows(4, 4, 4))


def guessing(name):
    m, (_, cond), plan = MODELS[name](), batch(), raster(4, 4)
    same = torch.equal(jacobi.decode(m, cond, plan, 2, temperature=0)[0], generate(m, cond, plan, temperature=0))
    assert same, "guessing ahead gives other tokens"


BUGS = {}


def bug(name, model_name, law, says):
    def keep(plant):
        BUGS[f"{model_name}: {name}"] = model_name, law, plant, says
        return plant

    return keep


def forget_keep(m):
    right = Transformer.forward
    m.setattr(Transformer, "forward", lambda self, x, mask, rope, cache, keep=None: right(self, x, mask, rope, cache))


@bug("asks see each other", "ARPG", parallel, "gets another answer when asked alone")
def _(m):
    m.setattr(ARPG, "ask", arpg_asks_that_see_each_other)


@bug("asks see all that is known", "ARPG", peeking, "in the full pass step")
def _(m):
    right = ARPG.ask
    m.setattr(ARPG, "ask", lambda self, place, k, v, mask: right(self, place, k, v, None))


@bug("asks stand nowhere and are told nothing", "ARPG", twins, "are twins")
def _(m):
    def wrong(self, place, k, v, mask):
        x, rope = self.blank.expand(len(k), place.shape[-1], -1), self.rope(torch.full_like(place, -1))
        for block in self.cross:
            x = block(x, k, v, mask, rope)
        return self.norm(x)

    m.setattr(ARPG, "ask", wrong)


@bug("the shared pair is put behind slots already counted", "ARPG", cache, "with a cache step")
def _(m):
    right = KVCache.put

    def wrong(self, layer, k, v):
        if layer < 2:
            return right(self, layer, k, v)
        self.n += k.shape[2]
        both = right(self, layer, k, v)
        self.n -= k.shape[2]
        return both

    m.setattr(KVCache, "put", wrong)


@bug("the shared keys are not rotated", "ARPG", lambda name: arpg_by_the_paper(), "not what the paper computes")
def _(m):
    def wrong(self, x, mask, rope, cache):
        return self.kv(self.trunk(x, mask, rope)).unflatten(-1, (2, self.trunk.n_heads, -1)).permute(2, 0, 3, 1, 4)

    m.setattr(ARPG, "content", wrong)


@bug("the asking half does not look", "ARPG", peeking, "does not depend on")
def _(m):
    right = ARPG.ask
    m.setattr(ARPG, "ask", lambda self, place, k, v, mask: right(self, place, k, torch.zeros_like(v), mask))


@bug("asks see each other", "RandAR", parallel, "gets another answer when asked alone")
def _(m):
    change_mask(m, RandAR)


@bug("asks stay in the cache", "RandAR", cache, "with a cache step")
def _(m):
    forget_keep(m)


@bug("asks see the tokens of their own step", "RandAR", peeking, "in the full pass step")
def _(m):
    right = RandAR._mask

    def wrong(self, plan, P, n_new, end, asked):
        mask = right(self, plan, P, n_new, end, asked).clone()
        mask[n_new:, P : P + end] = plan.step[asked, None] >= plan.step[: end // 2].repeat_interleave(2)
        return mask

    m.setattr(RandAR, "_mask", wrong)


@bug("a token stands before its instruction", "RandAR", peeking_one_by_one, "sees its own tokens or later")
def _(m):
    read, asks = AnyOrderAR.read, RandAR.asks
    m.setattr(RandAR, "read", asks)
    m.setattr(RandAR, "asks", read)


@bug("logits are read at the token before", "RandAR", lambda name: randar_by_training(), "not asked as in training")
def _(m):
    right = RandAR._instructed
    m.setattr(RandAR, "_instructed", lambda self, *args: right(self, *args).roll(1, 1))


@bug("guesses stay in the cache", "RandAR", guessing, "guessing ahead")
def _(m):
    forget_keep(m)


@bug("an instruction does not turn", "RandAR", twins_without_target, "two slots of step 0 are twins")
def _(m):
    m.setattr(RandAR, "asks", lambda self, *args: AnyOrderAR.asks(self, *args))


@bug("half of a pair is computed again", "RandAR", cache_one_by_one, "with a cache step")
def _(m):
    module = importlib.import_module("minar.papers.randar")
    right = module.cached_slots
    m.setattr(module, "cached_slots", lambda cache, P: right(cache, P) // 2 * 2)


@bug("what a step has drawn is kept as it was asked", "RandAR", lambda name: randar_by_training(), "as in training")
def _(m):
    right = RandAR._mask

    def wrong(self, plan, P, n_new, end, asked):
        """Instructions in the sequence see what they saw when they were asked: earlier steps and themselves."""
        mask = right(self, plan, P, n_new, end, asked).clone()
        step = plan.step[: end // 2].repeat_interleave(2)
        narrow = (step[:, None] > step) | torch.eye(end, dtype=torch.bool)
        for entry in range(0, end, 2):
            if (row := entry - end + n_new) >= 0:
                mask[row, P : P + end] &= narrow[entry]
        return mask

    m.setattr(RandAR, "_mask", wrong)


def choose_with(m, change):
    right = maskgit.choose
    m.setattr(maskgit, "choose", lambda *args: change(right, *args))


@bug("what is known is guessed again", "MaskGIT", lambda name: maskgit_settles(), "tokens a step, not")
def _(m):
    choose_with(m, lambda right, x, guess, hidden, *rest: right(x, guess, torch.ones_like(hidden), *rest))


@bug("all rows follow the first", "MaskGIT", lambda name: maskgit_settles(), "in the same order")
def _(m):
    choose_with(m, lambda right, x, guess, *rest: right(x[:1].expand_as(x), guess[:1].expand_as(guess), *rest[:2], 0))


@bug("the least sure are kept", "MaskGIT", lambda name: maskgit_keeps_the_surest(), "surest of")
def _(m):
    choose_with(m, lambda right, x, *rest: right(-x, *rest))


@bug("one token too few is kept", "MaskGIT", lambda name: maskgit_settles(), "tokens a step, not")
def _(m):
    choose_with(m, lambda right, x, guess, hidden, n, *rest: right(x, guess, hidden, n - 1, *rest))


@bug("confidence is that of the likeliest token", "MaskGIT", lambda name: maskgit_noise_is_gumbel(), "of the time")
def _(m):
    choose_with(m, lambda right, x, guess, *rest: right(x, x.argmax(-1), *rest))


@bug("the noise is twice as loud", "MaskGIT", lambda name: maskgit_noise_is_gumbel(), "of the time")
def _(m):
    choose_with(m, lambda right, x, guess, hidden, n, noise, g: right(x, guess, hidden, n, 2 * noise, g))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_caught(name, monkeypatch):
    model_name, law, plant, says = BUGS[name]
    law(model_name)
    plant(monkeypatch)
    with pytest.raises(AssertionError) as error:
        law(model_name)
    assert says in str(error.value)
