"""Planted bugs in models that follow a plan: each must be caught by a law. The test ids are the table."""

import importlib

import pytest
import torch
from families import batch, model, par

from minar import GPT, AnyOrderAR, CategoricalHead, MaskedAR, NextStepAR, Plan, laws, model_laws
from minar.condition import ClassLabel, TextPrefix
from minar.model import ARModel, before
from minar.papers import jacobi
from minar.papers.par import PAR
from minar.plan import random_order, raster, region_groups, rows
from minar.transformer import Transformer

REGIONS = region_groups(4, 4, 2)


def per_row():
    return random_order(4, 4, 2, torch.Generator().manual_seed(0))


# The laws, each on the model that it is tried on when nothing is wrong.


def plans(family, words):
    for p in (REGIONS, rows(4, 4, 4), per_row(), raster(4, 4)):
        model_laws.check_plan(p)


def peeking(family, words):
    model_laws.check_no_peeking(model(family, words=words), *batch(words=words), REGIONS)


def counts(family, words):
    model_laws.check_every_token_counts(model(family, words=words), *batch(words=words), REGIONS)


def twins(family, words):
    model_laws.check_no_twins(model(family, words=words), *batch(words=words), rows(4, 4, 4))


def cache(family, words):
    model_laws.check_cache(model(family, words=words), *batch(words=words), REGIONS)


def decoding(family, words):
    model_laws.check_decoding(model(family, words=words), batch(words=words)[1], per_row() if not words else REGIONS)


def parallel(family, words):
    model_laws.check_parallel(model(family, words=words), *batch(words=words), REGIONS)


def guided(family, words):
    model_laws.check_guided_step(model(family, words=words), *batch(words=words), per_row())


def nll(family, words):
    model_laws.check_nll(model(family, words=words), *batch(words=words), REGIONS)


def as_gpt(family, words):
    gpt = laws.wake(GPT(Transformer(32, 2, 2, hidden=32), 24, 5, (4, 4)))
    model_laws.check_same_as_gpt(model(family), gpt, *batch(), raster(4, 4))


def trained(family, words):
    laws.check_all_trained(model(family, words=words), *batch(words=words), REGIONS)


def meta(family, words):
    model_laws.check_meta(model(family, words=words), *batch(words=words), REGIONS)


def one_graph(family, words):
    orders = [random_order(4, 4, generator=torch.Generator().manual_seed(seed)).pos for seed in range(3)]
    draw = lambda seed: Plan(orders[seed], (4, 4, 4, 4))  # noqa: E731
    model_laws.check_one_graph(model(family, words=words), *batch(words=words), draw)


def seam(family, words):
    m = par()
    m.target.weight.data.zero_()
    model_laws.check_no_twins(m, *batch(), REGIONS)


def speculation(family, words):
    """Drafts that are verified leave the distribution as it is."""
    p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.1, 0.3, 0.3, 0.3])

    def draw(n):
        generator = torch.Generator().manual_seed(0)
        draft = torch.multinomial(q, n, replacement=True, generator=generator)[:, None]
        return jacobi.verify(draft, q.expand(n, 1, -1), p.expand(n, 1, -1), generator)[0][:, 0]

    laws.check_sampler(draw, p)


LAWS = (
    plans,
    peeking,
    counts,
    twins,
    cache,
    decoding,
    parallel,
    guided,
    nll,
    as_gpt,
    trained,
    meta,
    one_graph,
    seam,
    speculation,
)
MANY = {parallel: AnyOrderAR}


@pytest.mark.parametrize("law", LAWS)
def test_without_a_bug_the_law_holds(law):
    law(MANY.get(law, NextStepAR), 0)


BUGS = {}


def bug(name, law, says, family=NextStepAR, words=0):
    def keep(plant):
        BUGS[name] = law, plant, says, family, words
        return plant

    return keep


# The plan.


def plan_with(m, **methods):
    for name, method in methods.items():
        m.setattr(Plan, name, method)


@bug("unpermute permutes once more", plans, "unpermute must undo permute")
def _(m):
    plan_with(m, unpermute=Plan.permute)


@bug("permute sorts the wrong way", plans, "slot 0 must hold the token at pos[0]")
def _(m):
    permute, unpermute = Plan.permute, Plan.unpermute
    plan_with(m, permute=unpermute, unpermute=permute)


def mask_with(m, change):
    right = Plan.mask
    plan_with(m, mask=lambda self, a, b, n_mute=0: change(self, right(self, a, b, n_mute), a, b, n_mute))


@bug("the mask is causal within a step", plans, "is not step >= step")
def _(m):
    mask_with(
        m, lambda self, mask, a, b, n: mask.tril(mask.shape[1] - mask.shape[0]) if torch.is_tensor(mask) else mask
    )


@bug("the mask hides a step from itself", plans, "is not step >= step")
def _(m):
    def strict(self, mask, a, b, n_mute):
        step = torch.cat([self.step.new_full((n_mute,), -1), self.step[:b]])
        return (step if a == 0 else self.step[a:b])[:, None] > step

    mask_with(m, strict)


@bug("no mask in the full pass", peeking, "in the full pass step")
def _(m):
    mask_with(m, lambda self, mask, a, b, n: None if a == 0 else mask)


@bug("the mask lets a step see the next", peeking, "in the full pass step")
def _(m):
    mask_with(
        m, lambda self, mask, a, b, n: self.step[a:b, None] + 1 >= self.step[:b] if torch.is_tensor(mask) else mask
    )


@bug("mute vectors are not seen", counts, "of the condition is never used", words=3)
def _(m):
    def blind(self, mask, a, b, n):
        if torch.is_tensor(mask) and n:
            mask = mask.clone()
            mask[n:, :n] = False
            return mask
        return torch.cat([torch.zeros(b - a, n).bool(), torch.ones(b - a, b).bool()], 1) if n and a else mask

    mask_with(m, blind)


@bug("every slot reads the last token of the step before", plans, "a token is never read")
def _(m):
    right = Plan.__post_init__

    def wrong(self):
        right(self)
        last = [self.starts[s] - 1 for s in self.step.tolist()]
        object.__setattr__(self, "reads_from", torch.tensor(last))

    m.setattr(Plan, "__post_init__", wrong)


@bug("a slot reads its neighbour in the same step", plans, "must read a slot of the step before")
def _(m):
    right = Plan.__post_init__

    def wrong(self):
        right(self)
        object.__setattr__(self, "reads_from", torch.arange(self.n) - 1)

    m.setattr(Plan, "__post_init__", wrong)


@bug("guidance keeps the orders of half the batch", guided, "in the doubled batch is not what it is alone")
def _(m):
    m.setattr(Plan, "repeat", lambda self, k: Plan(self.pos.repeat_interleave(k, 0), self.sizes))


# Next step.


def read_with(m, change, cls=NextStepAR):
    right = cls.read
    m.setattr(cls, "read", lambda self, *args: change(self, *args, *right(self, *args)))


@bug("a slot reads its own token", peeking, "sees its own tokens or later")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x + self.embed(t[:, slots]), rope))


@bug("the condition is not read", peeking, "does not depend on the condition")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x - (plan.reads_from[slots] < 0)[:, None] * p[:, -1:], rope))


@bug("slots are not told where their tokens go", twins, "are twins")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x - self.target(plan.at(slots)), rope))


@bug("rows of the batch are mixed", decoding, "depends on the others of its batch", words=3)
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x + x.mean(0, keepdim=True), rope))


@bug("rotary angles of where the token goes", as_gpt, "the losses differ")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x, self.rope(plan.at(slots))))


@bug("rotary angles count from the first slot of the call", cache, "with a cache step 1 differs")
def _(m):
    read_with(
        m, lambda self, t, p, plan, slots, x, rope: (x, self.rope(plan.at(plan.reads_from[: slots.stop - slots.start])))
    )


@bug("the target starts at one", as_gpt, "the losses differ")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x + 1, rope))


@bug("all of the prefix is read by the first step alone", counts, "of the condition is never used", words=3)
def _(m):
    right = NextStepAR.hidden
    m.setattr(NextStepAR, "hidden", lambda self, t, prefix, *rest: right(self, t, prefix[:, -1:], *rest))


@bug("hidden returns the last slots, whatever was asked for", cache, "in one go differ")
def _(m):
    right = NextStepAR.hidden

    def wrong(self, tokens, prefix, plan, lo=0, hi=None, cache=None):
        h = right(self, tokens, prefix, plan, lo, hi, cache)
        return h.roll(1, 1) if hi is not None and hi - lo > 1 else h

    m.setattr(NextStepAR, "hidden", wrong)


@bug("the prompt is erased", decoding, "completed from its first")
def _(m):
    m.setattr(importlib.import_module("minar.generate"), "fill_prompt", lambda *args: None)


# Any order.


def any_mask(m, change):
    right = AnyOrderAR._mask

    def wrong(self, plan, P, n_new, b, asked):
        mask = right(self, plan, P, n_new, b, asked).clone()
        return change(mask, n_new, P + b)

    m.setattr(AnyOrderAR, "_mask", wrong)


@bug("asks see each other", parallel, "gets another answer when asked alone", AnyOrderAR)
def _(m):
    def change(mask, n_new, n_known):
        mask[n_new:, n_known:] = True
        return mask

    any_mask(m, change)


@bug("known slots see the asks", cache, "with a cache step", AnyOrderAR)
def _(m):
    def change(mask, n_new, n_known):
        mask[:n_new, n_known:] = True
        return mask

    any_mask(m, change)


@bug("asks see their own step's tokens", peeking, "in the full pass step", AnyOrderAR)
def _(m):
    right = AnyOrderAR._mask

    def wrong(self, plan, P, n_new, b, asked):
        mask = right(self, plan, P, n_new, b, asked).clone()
        mask[n_new:, P : P + b] = plan.step[asked, None] >= plan.step[:b]
        return mask

    m.setattr(AnyOrderAR, "_mask", wrong)


@bug("the asks stay in the cache", cache, "", AnyOrderAR)
def _(m):
    right = Transformer.forward
    m.setattr(Transformer, "forward", lambda self, x, mask, rope, cache, keep=None: right(self, x, mask, rope, cache))


@bug("an ask is not told where", twins, "are twins", AnyOrderAR)
def _(m):
    asks = lambda self, tokens, plan, slots: (  # noqa: E731
        self.blank.expand(len(tokens), slots.stop - slots.start, -1),
        self.rope(torch.full_like(plan.step[slots], -1)),
    )
    m.setattr(AnyOrderAR, "asks", asks)


@bug("places of known tokens count anew in each call", decoding, "with a cache the tokens differ", AnyOrderAR, words=3)
def _(m):
    right = AnyOrderAR.read

    def wrong(self, tokens, plan, slots):
        return right(self, tokens, plan, slots)[0], self.rope(plan.at(slice(0, slots.stop - slots.start)))

    m.setattr(AnyOrderAR, "read", wrong)


# Masked.


@bug("the token under a blank shines through", peeking, "sees its own tokens or later", MaskedAR)
def _(m):
    right = MaskedAR.look

    def wrong(self, tokens, prefix, plan, known):
        return right(self, tokens, prefix, plan, known) + 0.1 * self.embed(tokens)

    m.setattr(MaskedAR, "look", wrong)


@bug("one step too much is known", peeking, "sees its own tokens or later", MaskedAR)
def _(m):
    right = MaskedAR.look
    m.setattr(MaskedAR, "look", lambda self, t, p, plan, known: right(self, t, p, plan, known.roll(1, -1)))


@bug("known tokens are blanks, too", peeking, "does not depend on step 0", MaskedAR)
def _(m):
    right = MaskedAR.look
    m.setattr(MaskedAR, "look", lambda self, t, p, plan, known: right(self, t, p, plan, torch.zeros_like(known)))


@bug("blanks stand nowhere and are told nothing", twins, "are twins", MaskedAR)
def _(m):
    def wrong(self, tokens, prefix, plan, known):
        content = torch.where(known[..., None], self.embed(tokens), self.blank)
        rope = self.rope(torch.full((plan.n,), -1))
        return self.trunk(torch.cat([prefix, content], 1), None, before(rope, 1))[:, 1:]

    m.setattr(MaskedAR, "look", wrong)


@bug("all is guessed from nothing", nll, "nll is not the loss of the steps", MaskedAR)
def _(m):
    m.setattr(MaskedAR, "nll", ARModel.nll)


# What all share.


@bug("guidance with its halves swapped", guided, "draws other tokens")
def _(m):
    def draw(self, tokens, prefix, plan, s, cache=None, cfg=1.0, **knobs):
        h, h_null = self.hidden(torch.cat([tokens, tokens]), prefix, plan.repeat(2), s, s + 1, cache).chunk(2)
        return self.head.sample(h_null, h, cfg, **knobs)

    m.setattr(ARModel, "draw", draw)


@bug("the null caption still holds the words", guided, "the null condition is the condition", words=3)
def _(m):
    m.setattr(TextPrefix, "null", lambda self, words: words)


@bug("the null label is the label", guided, "the null condition is the condition")
def _(m):
    m.setattr(ClassLabel, "null", lambda self, label: label)


@bug("captions are never dropped", nll, "a condition is remembered", words=3)
def _(m):
    m.setattr(TextPrefix, "drop", lambda self, words, p: words)


@bug("words without places", trained, "no gradient reaches cond.place.weight", words=3)
def _(m):
    m.setattr(TextPrefix, "forward", lambda self, words: self.table(words))


@bug("the loss is of tokens by position", nll, "nll is not the loss of the steps")
def _(m):
    def wrong(self, tokens, cond, plan, inputs=None):
        return self.head.loss(self.hidden(plan.permute(tokens), self.prefix(cond), plan), tokens)

    m.setattr(ARModel, "nll", wrong)


@bug("what is drawn is not put back into place", decoding, "completed from its first")
def _(m):
    module = importlib.import_module("minar.generate")
    right = module.generate
    m.setattr(
        model_laws, "generate", lambda model, cond, plan, *a, **k: plan.permute(right(model, cond, plan, *a, **k))
    )


@bug("the model looks at its tokens", meta, "needs values where there are none")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x, rope) if t.sum() > 7 else (x + 0, rope))


@bug("a tensor is made on the CPU", meta, "")
def _(m):
    m.setattr(CategoricalHead, "empty", lambda self, batch, n: torch.zeros(batch, n, dtype=torch.long))


@bug("a tensor is brought to the CPU", meta, "needs values where there are none", AnyOrderAR)
def _(m):
    right = AnyOrderAR.read
    m.setattr(AnyOrderAR, "read", lambda self, tokens, plan, slots: right(self, tokens.cpu(), plan, slots))


@bug("the model looks at its plan", one_graph, "is not one graph")
def _(m):
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x, rope) if plan.pos[0] > 7 else (x + 0, rope))


@bug("each plan is a graph of its own", one_graph, "graphs for three plans of the same steps")
def _(m):
    right = Plan.__post_init__

    def wrong(self):
        right(self)
        object.__setattr__(self, "first", int(self.pos[0]))

    m.setattr(Plan, "__post_init__", wrong)
    read_with(m, lambda self, t, p, plan, slots, x, rope: (x + 0.0 * plan.first, rope))


# Papers.


@bug("no transition tokens", seam, "are twins")
def _(m):
    m.setattr(PAR, "read", NextStepAR.read)


@bug("one transition token for all", seam, "are twins")
def _(m):
    right = PAR.read

    def wrong(self, *args):
        self.transition.weight.data[:] = self.transition.weight[0]
        return right(self, *args)

    m.setattr(PAR, "read", wrong)


@bug("a draft is always kept", speculation, "drew code 3, whose probability is 0")
def _(m):
    m.setattr(jacobi, "verify", lambda draft, q, p, generator: (draft, draft[:, 0]))


@bug("what is not kept is drawn from p", speculation, "of the time, its p is")
def _(m):
    right = jacobi.race
    p = torch.tensor([0.6, 0.3, 0.1, 0.0])
    m.setattr(jacobi, "race", lambda x, generator: right(p.expand_as(x), generator))


def test_every_law_catches_something():
    assert {law for law, *_ in BUGS.values()} == set(LAWS)
    judged = {name for name in vars(model_laws) if name.startswith("check_")}
    used = {name for law in LAWS for name in law.__code__.co_names}
    assert judged <= used, f"no bug is planted for {judged - used}"


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{law.__name__}: {name}") for name, (law, *_) in BUGS.items()])
def test_planted_bug_is_caught(name, monkeypatch):
    law, plant, says, family, words = BUGS[name]
    plant(monkeypatch)
    with pytest.raises(AssertionError) as error:
        law(family, words)
    assert says in str(error.value)
