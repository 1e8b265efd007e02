"""NADE: its probabilities are probabilities. The laws come first, then planted bugs: the test ids are the table."""

import math

import pytest
import torch
import torch.nn.functional as F

from minar import laws
from minar.lab.train import fit
from minar.papers import ardm_coder
from minar.papers.nade import NADE, Sheet
from minar.plan import Plan, halton, random_order, raster, rows

N = 9
EVERY = (torch.arange(2**N)[:, None] >> torch.arange(N)) & 1  # all images of 3 x 3, (512, 9)
NOTHING = torch.zeros(1, dtype=torch.long)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


ORDERS = {
    "raster": raster(3, 3),
    "columns": Plan(torch.arange(N).view(3, 3).T.flatten(), (1,) * N),
    "halton": halton(3, 3, (1,) * N),
    "random": random_order(3, 3, generator=seeded()),
}


def toy(family=NADE):
    """Woken, and strong: each pixel moves those after it a lot."""
    model = laws.wake(family(N, 16))
    model.W.data *= 8
    model.V.data *= 4
    model.b.data -= 1
    return model


@torch.no_grad()
def probabilities(model, plan):
    """Of all 512 images, in float64."""
    return (-model.double().nll(EVERY, plan).sum(1)).exp()


# Laws.


def sums_to_one(family=NADE):
    for name, plan in ORDERS.items():
        p = probabilities(toy(family), plan)
        assert p.max() > 3 / 512, "all images are alike: the sum would prove little"
        assert abs(p.sum() - 1) < 1e-12, f"in order {name} the probabilities add up to {p.sum():.6f}"


def no_peeking(family=NADE):
    """The law of a labelled sequence: the first pixel plays the label, the last is never read."""
    model, x = toy(family), torch.randint(2, (2, N - 2), generator=seeded())

    def logits(tokens, first):
        ink = model.logits(torch.cat([first[:, None], tokens, first[:, None]], 1), raster(3, 3))[:, 1:]
        return torch.stack([torch.zeros_like(ink), ink], -1)

    laws.check_causal(logits, x, torch.tensor([0, 1]), 2)


def tied_is_anew(family=NADE):
    """The running sum is what equations (2) and (3) give when every pixel adds up all rows before it."""
    model, x = toy(family), EVERY[::7]
    for plan in (*ORDERS.values(), random_order(3, 3, len(x), seeded())):

        def anew(x, plan=plan):
            pos = plan.pos.expand(len(x), N)
            logits = []
            for d in range(N):
                known = torch.zeros(len(x), N).scatter(1, pos[:, :d], x.float().gather(1, pos[:, :d]))
                h = torch.sigmoid(model.c + known @ model.W)
                logits.append((h * model.V[pos[:, d]]).sum(1) + model.b[pos[:, d]])
            return torch.stack(logits, 1)

        laws.check_equal(lambda x, plan=plan: model.logits(x, plan), anew, x)


def sampling(family=NADE):
    """Images come as often as their probability says, and a prompt is kept and continued as it should be."""
    model, plan, place = toy(family), ORDERS["random"], torch.arange(N)
    p, generator = probabilities(model, plan), seeded(1)

    def draw(n, prompt=None, steps=0):
        return (model.sample(n, plan, prompt, steps, generator) << place).sum(1)

    laws.check_sampler(draw, p.float())
    kept = (EVERY[:, plan.pos[:4]] == EVERY[77, plan.pos[:4]]).all(1)
    posterior = torch.where(kept, p, 0) / p[kept].sum()
    laws.check_sampler(lambda n: draw(n, EVERY[77].expand(n, -1), 4), posterior.float())
    plan = random_order(3, 3, 4000, seeded(2))
    ink, one_each = model.sample(4000, plan, generator=generator).double().mean(0), 0
    for k in range(0, 4000, 40):
        one_each += probabilities(model, Plan(plan.pos[k], plan.sizes)) @ EVERY.double() / 100
    assert (ink - one_each).abs().max() < 0.06, "with an order for each row the ink is elsewhere"


def coding(family=NADE, sheet=Sheet, images=40):
    """All images come back from the file, which is as long as the nll says, and a byte."""
    model, plan = toy(family), ORDERS["random"]
    x = model.sample(images, plan, generator=seeded())
    coder = sheet(model, plan, images)
    code = ardm_coder.encode(coder, x.view(1, -1), NOTHING, coder.plan)
    back = ardm_coder.decode(code, coder, NOTHING, coder.plan)
    assert torch.equal(back.view(images, N), x), "another sheet comes back"
    bits = float(model.nll(x, plan).detach().sum()) / math.log(2)
    assert abs(8 * len(code) - bits) < 9, f"{8 * len(code)} bits for {bits:.1f}"


LAWS = {law.__name__: law for law in (sums_to_one, no_peeking, tied_is_anew, sampling, coding)}


@pytest.mark.parametrize("name", LAWS)
def test_law(name):
    LAWS[name]()


# What the paper promises.


def test_a_fresh_model_costs_one_bit_a_pixel():
    assert abs(NADE(N, 16)(EVERY, raster(3, 3)) - math.log(2)) < 1e-6


def test_it_learns_what_pixels_know_of_each_other():
    """The second half repeats the first: 4 pixels of news, then 5 that cost nothing."""
    half = torch.randint(2, (256, 4), generator=seeded())
    x = torch.cat([half, half, half[:, :1]], 1)
    torch.manual_seed(0)
    model = NADE(N, 32)
    fit(model, (x,), 400, 64, lr=2e-2, plan=raster(3, 3), device="cpu", progress=False)
    cost = model.nll(x, raster(3, 3)).mean(0).detach() / math.log(2)
    assert cost[:4].mean() > 0.95 and cost[4:].max() < 0.2, f"it costs {cost.tolist()}"


def test_every_weight_that_can_matter_is_trained():
    model = toy()
    laws.check_all_trained(model, EVERY[::5], raster(3, 3))
    idle = model.W.grad.abs().amax(1) == 0
    assert idle.tolist() == [False] * (N - 1) + [True], "of W only the last pixel's row has nobody to speak to"


def test_all_orders_at_once_cost_more_in_each_and_less_together():
    """One model for all orders is worse in one order than one made for it; averaged over orders it gains."""
    shape = torch.tensor([0b111000111, 0b101101101, 0b010111010, 0b100010001, 0b001010100])
    x = EVERY[shape.repeat(60)] ^ (torch.rand(300, N, generator=seeded()) < 0.08).long()
    models = {}
    for name, plan in {"fixed": raster(3, 3), "all": lambda n, done: random_order(3, 3, n)}.items():
        torch.manual_seed(0)
        models[name] = NADE(N, 12)
        fit(models[name], (x,), 500, 64, lr=2e-2, plan=plan, device="cpu", progress=False)
    orders = [random_order(3, 3, generator=seeded(k)) for k in range(8)]
    nll = torch.stack([models["all"].nll(x, order).sum(1) for order in orders])
    together = math.log(len(orders)) - (-nll).logsumexp(0)
    assert models["fixed"].nll(x, raster(3, 3)).sum(1).mean() < nll.mean(), "all orders cost less than one"
    assert together.mean() < nll.mean() - 0.01, "averaging over orders gains nothing"


# Bad input.


BAD = {
    "floats": (lambda m: m(EVERY.float(), raster(3, 3)), TypeError, "torch.long"),
    "greys": (lambda m: m(EVERY * 3, raster(3, 3)), ValueError, "0..1"),
    "another size": (lambda m: m(EVERY[:, :8], raster(3, 3)), ValueError, "9 pixels, got 8"),
    "two a step": (lambda m: m(EVERY, rows(3, 3, 3)), ValueError, "one at a time"),
    "another plan": (lambda m: m(EVERY, raster(2, 2)), ValueError, "one at a time"),
    "orders of another batch": (lambda m: m(EVERY, random_order(3, 3, 2)), ValueError, "a batch of 2"),
    "a sheet of another size": (
        lambda m: ardm_coder.encode(Sheet(m, raster(3, 3), 2), EVERY[:1], NOTHING, Sheet(m, raster(3, 3), 2).plan),
        ValueError,
        "18",
    ),
    "another sheet's plan": (
        lambda m: ardm_coder.encode(Sheet(m, raster(3, 3), 1), EVERY[:1], NOTHING, ORDERS["columns"]),
        ValueError,
        "one plan",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, error, words = BAD[name]
    with pytest.raises(error, match=words):
        call(toy())


# Planted bugs.


class Peeks(NADE):
    """The sum is not moved on: a pixel sees itself."""

    def logits(self, x, plan):
        a = self.c + (plan.permute(x)[..., None] * self.W[plan.pos]).cumsum(1)
        return self.out(a, plan.pos)


class PeeksAhead(NADE):
    """A pixel sees the one after it, and not itself."""

    def logits(self, x, plan):
        added = plan.permute(x)[..., None] * self.W[plan.pos]
        return self.out(self.c + F.pad(added, (0, 0, 1, -1)).cumsum(1) + F.pad(added, (0, 0, -1, 1)), plan.pos)


class Forgets(NADE):
    """Only the pixel just before is added, not the sum: right probabilities, of a poorer model."""

    def logits(self, x, plan):
        added = plan.permute(x)[..., None] * self.W[plan.pos]
        return self.out(self.c + F.pad(added, (0, 0, 1, -1)), plan.pos)


class WrongRows(NADE):
    """Weights are taken by slot instead of by position: right in raster order only."""

    def logits(self, x, plan):
        added = plan.permute(x)[..., None] * self.W
        return self.out(self.c + F.pad(added, (0, 0, 1, -1)).cumsum(1), torch.arange(self.n))


class Averages(NADE):
    """The nll is halved, as a mean taken over too many would do."""

    def nll(self, x, plan):
        return super().nll(x, plan) / 2


class Unmoved(NADE):
    """Targets stay by position while logits are by slot."""

    def nll(self, x, plan):
        logits = self.logits(x, plan)
        return F.binary_cross_entropy_with_logits(logits, x.type_as(logits), reduction="none")


class Stale(NADE):
    """The sampler never adds what it drew."""

    def sample(self, batch, plan, prompt=None, prompt_steps=0, generator=None):
        x = torch.zeros(batch, self.n, dtype=torch.long)
        for slot in range(self.n):
            p = self.out(self.c, plan.pos[slot]).sigmoid().detach().expand(batch)
            x[:, slot] = torch.bernoulli(p, generator=generator).long()
        return plan.unpermute(x)


class Greedy(NADE):
    """The sampler takes the likelier answer."""

    def out(self, a, place):
        logits = super().out(a, place)
        return logits if a.requires_grad or a.dim() == 3 else 1e4 * logits.sign()


class BySlot(NADE):
    """The sampler forgets to put its pixels back to their places."""

    def sample(self, batch, plan, *args, **knobs):
        return plan.permute(super().sample(batch, plan, *args, **knobs))


class LosesPrompt(NADE):
    """A prompt is kept and not read."""

    def sample(self, batch, plan, prompt=None, prompt_steps=0, generator=None):
        x = super().sample(batch, plan, None, 0, generator)
        if prompt is not None:
            x[:, plan.pos[:prompt_steps]] = prompt[:, plan.pos[:prompt_steps]]
        return x


class RunsOn(Sheet):
    """The sum does not start anew with each image."""

    def hidden(self, tokens, prefix, plan, lo, hi, cache=None):
        pos = self.pos.repeat(lo // self.n + 1)
        ink = self.model.out(self.model.c + tokens[0, :lo].float() @ self.model.W[pos[:lo]], self.pos[lo % self.n])
        return torch.stack([torch.zeros_like(ink), ink]).view(1, 1, 2)


class Negative(Sheet):
    """Ink and no ink change places: still lossless, but long."""

    def hidden(self, *args):
        return super().hidden(*args).flip(-1)


PLANTED = {
    Peeks: (sums_to_one, no_peeking, tied_is_anew),
    PeeksAhead: (sums_to_one, no_peeking, tied_is_anew),
    Forgets: (no_peeking, tied_is_anew, sampling),
    WrongRows: (tied_is_anew, sampling),
    Averages: (sums_to_one,),
    Unmoved: (sums_to_one,),
    Stale: (sampling,),
    Greedy: (sampling,),
    BySlot: (sampling,),
    LosesPrompt: (sampling,),
}


@pytest.mark.parametrize(
    ("bug", "law"), [(bug, law) for bug, found in PLANTED.items() for law in found], ids=lambda x: x.__name__
)
def test_planted_bug_is_caught(bug, law):
    with pytest.raises(AssertionError):
        law(bug)


@pytest.mark.parametrize("bug", [RunsOn, Negative], ids=lambda x: x.__name__)
def test_planted_bug_of_the_sheet_is_caught(bug):
    with pytest.raises(AssertionError):
        coding(sheet=bug)


def test_the_sum_alone_does_not_see_a_poor_model():
    """A model may add up to one and be bad: the sum proves a probability, not a good one."""
    sums_to_one(Forgets)
