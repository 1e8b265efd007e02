"""Planted bugs: each must be caught by a law. The test ids are the table of which law catches which bug.

A law that lets a plausible bug pass teaches nothing, so the laws are tested here the way they test models.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minar import (
    FSQ,
    GPT,
    VQVAE,
    CategoricalHead,
    CosineQuantizer,
    Decoder,
    Encoder,
    KVCache,
    Transformer,
    VectorQuantizer,
    gpt,
    heads,
    laws,
    quantizers,
    transformer,
)
from minar.condition import ClassLabel
from minar.quantizers import Quantized, straight_through, to_map, to_rows
from minar.sampling import race

# The laws, each on the smallest model it can judge. Classes are taken from here, so that a bug can replace them.

LABEL = torch.tensor([0, 3])
TOKENS = torch.randint(24, (2, 16), generator=torch.Generator().manual_seed(1))


def world():
    return SimpleNamespace(
        GPT=GPT, KVCache=KVCache, Head=CategoricalHead, VQVAE=VQVAE, quantizer=VectorQuantizer(32, 6)
    )


def model(w, n_layers=2):
    return laws.wake(w.GPT(Transformer(32, n_layers, 2, hidden=32), 24, 5, (4, 4)))


def causal(w):
    laws.check_causal(model(w).logits, TOKENS[:, :-1], LABEL, 24)


def rope(w):
    """What a model tells its trunk about the 3 x 5 tokens behind the class."""
    m, given = w.GPT(Transformer(32, 1, 2, hidden=32), 24, 5, (3, 5)), []
    m.trunk.forward = lambda x, mask, rope, cache: given.append(rope) or x
    m.hidden(TOKENS[:, :15], LABEL)
    laws.check_rope(lambda x, place: transformer.rotate(x, given[0][1:][place]), (3, 5), 16)


def order(w):
    laws.check_order(model(w, n_layers=1).logits, TOKENS[:, :-1], LABEL)


def loss(w):
    m = model(w)
    laws.check_loss(lambda tokens, label: m(tokens, label, p_drop=0.0), m.logits, TOKENS, LABEL)
    forgetful = lambda tokens, label: m.logits(tokens, m.cond.null(label))  # noqa: E731
    laws.check_loss(lambda tokens, label: m(tokens, label, p_drop=1.0), forgetful, TOKENS, LABEL)


def equal(w):
    """Rows computed in pieces, behind a cache, are the rows computed at once."""
    m, cache = model(w), w.KVCache(16)
    pieces = torch.cat([m.logits(TOKENS[:, :end], LABEL, cache) for end in (0, 1, 6, 15)], 1)
    laws.check_equal(lambda: m.logits(TOKENS[:, :15], LABEL), lambda: pieces)


def generate(w):
    laws.check_generate(model(w).generate, LABEL)


def guided(w):
    laws.check_guided(model(w).generate, LABEL)


def guidance(w):
    m = model(w)
    laws.check_guidance(m.logits, m.cond.null, TOKENS[:, :-1], LABEL)


def kv(w):
    laws.check_kv(w.KVCache)


def head(w):
    laws.check_head(w.Head(16, 12), 16, 12)


def sampler(w):
    p = torch.tensor([0.5, 0.25, 0.125, 0.125, 0])
    laws.check_sampler(lambda n: heads.race(p.expand(n, -1), torch.Generator().manual_seed(0)), p)


def dropped(w):
    """A label is forgotten as often as it was asked for."""
    cond = ClassLabel(5, 4)
    torch.manual_seed(0)
    drop = lambda n: (cond.drop(torch.zeros(n, dtype=torch.long), 0.3) == 5).long()  # noqa: E731
    laws.check_sampler(drop, torch.tensor([0.7, 0.3]))


def quantizer(w):
    q, generator = w.quantizer, torch.Generator().manual_seed(0)
    if hasattr(q, "codebook"):
        q.codebook.data.normal_(generator=generator)
    laws.check_quantizer(q, torch.randn(3, q.channels, 4, 4, generator=generator))


def trained(w):
    laws.check_all_trained(model(w), TOKENS, LABEL)
    vqvae = w.VQVAE(Encoder(3, 6, 8, (1, 1), 1), Decoder(3, 6, 8, (1, 1), 1), VectorQuantizer(32, 6))
    laws.check_all_trained(vqvae, torch.rand(2, 3, 8, 8))


LAWS = (causal, rope, order, loss, equal, generate, guided, guidance, kv, head, sampler, dropped, quantizer, trained)


@pytest.mark.parametrize("law", LAWS)
def test_without_a_bug_the_law_holds(law):
    law(world())


# The bugs. Each is planted in a world `w` or with monkeypatch `m`, and named with its law and a piece of what it says.

BUGS = {}


def bug(name, law, says):
    def keep(plant):
        BUGS[name] = law, plant, says
        return plant

    return keep


def hidden(self, tokens, label, cache=None, slots=None, start=None, mask="causal", rope=True):
    """GPT.hidden with a screw for each thing that can be wrong."""
    past = 0 if cache is None else cache.n
    new = self.embed(tokens[:, max(past - 1, 0) :])
    x = new if past else (slots or (lambda c, t: torch.cat([c, t], 1)))(self.cond(label), new)
    place = torch.arange(x.shape[1]) + (past - 1 if start is None else start(past))
    angles = transformer.rope_2d(place, self.grid[1], self.trunk.width // self.trunk.n_heads)
    return self.trunk(x, mask, angles if rope is True or (rope == "first" and not past) else None, cache)


def gpt_with(**screws):
    def wrong(self, tokens, label, cache=None):
        return hidden(self, tokens, label, cache, **screws)

    return type("GPT", (GPT,), {"hidden": wrong})


@bug("no mask", causal, "it peeks ahead")
def _(w, m):
    w.GPT = gpt_with(mask=None)


@bug("the row of token i reads token i", causal, "token 0 moves row 0: it peeks ahead")
def _(w, m):
    w.GPT = gpt_with(slots=lambda c, t: torch.cat([t, c], 1))


@bug("the row of token i reads token i - 2", causal, "token 0 does not reach row 1")
def _(w, m):
    w.GPT = gpt_with(slots=lambda c, t: torch.cat([c, c, t[:, :-1]], 1) if t.shape[1] else c)


@bug("no row for the first token", causal, "must have one row more")
def _(w, m):
    w.GPT = gpt_with(slots=lambda c, t: t)


@bug("the label is not read", causal, "the label does not reach row 0")
def _(w, m):
    w.GPT = gpt_with(slots=lambda c, t: torch.cat([0 * c + 1, t], 1))


@bug("the label is hidden from later rows", causal, "the label does not reach row")
def _(w, m):
    below = torch.ones(16, 16).tril().bool()
    below[1:, 0] = False
    w.GPT = gpt_with(mask=below)


@bug("no positions at all", order, "the order of the tokens does not matter")
def _(w, m):
    w.GPT = gpt_with(rope=False)


@bug("rows taken for columns", rope, "the same way apart, and another score")
def _(w, m):
    right = transformer.rope_2d
    m.setattr(gpt, "rope_2d", lambda place, width, head_dim: right(place, 3, head_dim))


@bug("places one too far", rope, "the same way apart, and another score")
def _(w, m):
    right = transformer.rope_2d
    m.setattr(gpt, "rope_2d", lambda place, width, head_dim: right(place + 1, width, head_dim))


@bug("the row is forgotten", rope, "two different ways apart give the same score")
def _(w, m):
    right = transformer.rope_2d
    m.setattr(gpt, "rope_2d", lambda place, width, head_dim: right(place % width, width, head_dim))


@bug("halves of the channels turned as pairs of neighbours", rope, "the same way apart, and another score")
def _(w, m):
    def rotate(x, angles):
        cos, sin = angles.unbind(-1)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * cos + b * sin], -1)

    m.setattr(transformer, "rotate", rotate)


@bug("training reads the token it predicts", loss, "is it shifted?")
def _(w, m):
    def forward(self, tokens, label, p_drop=0.1):
        return self.head.loss(self.hidden(tokens[:, 1:], self.cond.drop(label, p_drop)), tokens).mean()

    w.GPT = type("GPT", (GPT,), {"forward": forward})


@bug("training predicts the token it reads", loss, "is it shifted?")
def _(w, m):
    def forward(self, tokens, label, p_drop=0.1):
        h = self.hidden(tokens[:, :-1], self.cond.drop(label, p_drop))
        return self.head.loss(h[:, 1:], tokens[:, :-1]).mean()

    w.GPT = type("GPT", (GPT,), {"forward": forward})


@bug("the loss is a sum", loss, "is it shifted?")
def _(w, m):
    forward = lambda self, tokens, label, p_drop=0.1: GPT.forward(self, tokens, label, p_drop) * 16  # noqa: E731
    w.GPT = type("GPT", (GPT,), {"forward": forward})


@bug("labels are dropped with 1 - p", loss, "its logits give")
def _(w, m):
    drop = ClassLabel.drop
    m.setattr(ClassLabel, "drop", lambda self, label, p: drop(self, label, 1 - p))


@bug("labels are never dropped", loss, "its logits give")
def _(w, m):
    m.setattr(ClassLabel, "drop", lambda self, label, p: label)


@bug("is_causal for a chunk behind a cache", equal, "results differ")
def _(w, m):
    m.setattr(transformer, "attend", lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, is_causal=True))


@bug("no mask for a chunk behind a cache", equal, "results differ")
def _(w, m):
    def attend(q, k, v, mask):
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] == k.shape[2] and mask == "causal")

    m.setattr(transformer, "attend", attend)


@bug("no rotation while decoding", generate, "with a cache")
def _(w, m):
    w.GPT = gpt_with(rope="first")


@bug("places one too far while decoding", generate, "with a cache")
def _(w, m):
    w.GPT = gpt_with(start=lambda past: past if past else -1)


@bug("places start anew in each call", generate, "with a cache")
def _(w, m):
    w.GPT = gpt_with(start=lambda past: -1)


@bug("the cache keeps keys before rotation", generate, "with a cache")
def _(w, m):
    def forward(self, x, mask, rope, cache, layer):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.put(layer, k, v)
        q = transformer.rotate(q, rope)
        k = torch.cat([k[:, :, : -len(rope)], transformer.rotate(k[:, :, -len(rope) :], rope)], 2)
        return self.out(transformer.attend(q, k, v, mask).transpose(1, 2).flatten(2))

    m.setattr(transformer.Attention, "forward", forward)


@bug("the cached path ignores cfg", generate, "with a cache")
def _(w, m):
    def wrong(self, label, cfg=1.0, prompt=None, use_cache=True, **knobs):
        return GPT.generate(self, label, 1.0 if use_cache else cfg, prompt, use_cache, **knobs)

    w.GPT = type("GPT", (GPT,), {"generate": wrong})


@bug("the prompt is drawn over", generate, "a prompt must come back unchanged")
def _(w, m):
    m.setattr(GPT, "fill_prompt", lambda self, tokens, prompt: 0)


@bug("decoding starts one token late", generate, "completed from its first")
def _(w, m):
    fill = GPT.fill_prompt
    m.setattr(GPT, "fill_prompt", lambda self, tokens, prompt: min(fill(self, tokens, prompt) + 1, 16))


@bug("cfg is ignored", guided, "at cfg 0 another label changes the image")
def _(w, m):
    wrong = lambda self, label, cfg=1.0, **knobs: GPT.generate(self, label, **knobs)  # noqa: E731
    w.GPT = type("GPT", (GPT,), {"generate": wrong})


@bug("halves with and without label swapped", guided, "at cfg 0 another label changes the image")
def _(w, m):
    sample = CategoricalHead.sample
    swap = lambda h, h_null, *rest: (h, None, *rest) if h_null is None else (h_null, h, *rest)  # noqa: E731
    m.setattr(CategoricalHead, "sample", lambda self, h, h_null, cfg, **kw: sample(self, *swap(h, h_null, cfg), **kw))


@bug("the two halves read other rows' tokens", guided, "depends on the others of its batch")
def _(w, m):
    right = GPT.hidden

    def wrong(self, tokens, label, cache=None):
        mixed = torch.tensor([0, 0, 1, 1]) if len(tokens) == 4 else torch.arange(len(tokens))  # repeat_interleave
        return right(self, tokens[mixed], label, cache)

    w.GPT = type("GPT", (GPT,), {"hidden": wrong})


@bug("the null label is the label", guidance, "the null label still knows the label")
def _(w, m):
    m.setattr(ClassLabel, "null", lambda self, label: label)


@bug("the null label is class 0", guidance, "a class gives the logits of the null label")
def _(w, m):
    m.setattr(ClassLabel, "null", lambda self, label: torch.zeros_like(label))


def cache_with(**methods):
    return type("KVCache", (KVCache,), methods)


@bug("the cache returns the new slots only", kv, "returns other keys")
def _(w, m):
    def put(self, layer, k, v):
        return tuple(x[:, :, self.n :] for x in KVCache.put(self, layer, k, v))

    w.KVCache = cache_with(put=put)


@bug("the cache returns the old slots only", kv, "returns other keys")
def _(w, m):
    def put(self, layer, k, v):
        return tuple(x[:, :, : self.n] for x in KVCache.put(self, layer, k, v))

    w.KVCache = cache_with(put=put)


@bug("the cache returns all its room", kv, "returns other keys")
def _(w, m):
    def put(self, layer, k, v):
        KVCache.put(self, layer, k, v)
        return self.layers[layer]

    w.KVCache = cache_with(put=put)


@bug("the cache swaps keys and values", kv, "returns other keys")
def _(w, m):
    w.KVCache = cache_with(put=lambda self, layer, k, v: KVCache.put(self, layer, v, k))


@bug("the cache has one drawer for all layers", kv, "returns other keys")
def _(w, m):
    w.KVCache = cache_with(put=lambda self, layer, k, v: KVCache.put(self, layer if self.n == 0 else 0, k, v))


@bug("the cache counts every layer", kv, "returns other keys")
def _(w, m):
    def put(self, layer, k, v):
        out = KVCache.put(self, layer, k, v)
        self.n += k.shape[2]
        return out

    w.KVCache = cache_with(put=put, advance=lambda self, n: None)


@bug("the cache never advances", kv, "2 slots were put, n says 0")
def _(w, m):
    w.KVCache = cache_with(advance=lambda self, n: None)


class Appending:
    """Concatenates: it cannot forget, and takes all you give it."""

    def __init__(self, max_len, forgets=False):
        self.max_len, self.n, self.layers, self.forgets = max_len, 0, {}, forgets

    def put(self, layer, k, v):
        old = self.layers.get(layer, (k[:, :, :0], v[:, :, :0]))
        if self.forgets:
            old = tuple(x[:, :, : self.n] for x in old)
        self.layers[layer] = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
        return self.layers[layer]

    advance = KVCache.advance


@bug("the cache does not forget", kv, "put must write behind the first slot")
def _(w, m):
    w.KVCache = Appending


@bug("the cache takes more than it has room for", kv, "that holds 3 took 2 more")
def _(w, m):
    w.KVCache = lambda max_len: Appending(max_len, forgets=True)


@bug("the cache spreads one row over its batch", kv, "took a batch of 1")
def _(w, m):
    def put(self, layer, k, v):
        like = self.layers[layer][0] if layer in self.layers else k
        return KVCache.put(self, layer, k.expand(len(like), -1, -1, -1), v.expand(len(like), -1, -1, -1))

    w.KVCache = cache_with(put=put)


@bug("guidance with its terms swapped", head, "guided logits at cfg 0")
def _(w, m):
    m.setattr(heads, "guide", lambda cond, null, cfg: cond if null is None else cond + cfg * (null - cond))


@bug("guidance as VAR writes it", head, "guided logits at cfg")
def _(w, m):
    m.setattr(heads, "guide", lambda cond, null, cfg: cond if null is None else cond + cfg * (cond - null))


@bug("the loss is in bits", head, "the first loss is")
def _(w, m):
    w.Head = type("Head", (CategoricalHead,), {"loss": lambda self, h, t: CategoricalHead.loss(self, h, t) * 1.4427})


@bug("the loss is a mean already", head, "one number per token")
def _(w, m):
    w.Head = type("Head", (CategoricalHead,), {"loss": lambda self, h, t: CategoricalHead.loss(self, h, t).mean()})


@bug("the loss smooths its labels", head, "loss is not the cross-entropy")
def _(w, m):
    def smooth(self, h, target):
        logits = self(h).transpose(1, 2)
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)

    w.Head = type("Head", (CategoricalHead,), {"loss": smooth})


@bug("a head that does not start at zero", head, "the first loss is")
def _(w, m):
    m.setattr(nn.init, "zeros_", lambda weight: weight)


def sample_with(change):
    """The sampler with one line changed: change(logits, temperature, k, p) are the logits that are drawn from."""

    def sample(self, h, h_null=None, cfg=1.0, temperature=1.0, top_k=0, top_p=1.0, generator=None):
        logits = self.logits(h, h_null, cfg)
        if temperature == 0:
            return logits.argmax(-1)
        return race(change(logits, temperature, top_k, top_p).softmax(-1), generator)

    return type("Head", (CategoricalHead,), {"sample": sample})


@bug("temperature multiplies", head, "of the time, its p is")
def _(w, m):
    w.Head = sample_with(lambda x, t, k, p: heads.top_p(heads.top_k(x * t, k), p))


@bug("temperature is ignored", head, "of the time, its p is")
def _(w, m):
    w.Head = sample_with(lambda x, t, k, p: heads.top_p(heads.top_k(x, k), p))


@bug("top-p before temperature", head, "whose probability is 0")
def _(w, m):
    w.Head = sample_with(lambda x, t, k, p: heads.top_p(heads.top_k(x, k), p) / t)


@bug("top_k keeps one more", head, "top_k 1 must take the largest")
def _(w, m):
    right = heads.top_k
    m.setattr(heads, "top_k", lambda x, k: right(x, k + 1 if k else 0))


@bug("top_k keeps 2 k - 1", head, "whose probability is 0")
def _(w, m):
    right = heads.top_k
    m.setattr(heads, "top_k", lambda x, k: right(x, 2 * k - 1 if k else 0))


@bug("top_k sets the rest to 0", head, "top_k 1 must take the largest")
def _(w, m):
    m.setattr(heads, "top_k", lambda x, k: x if not k else x.masked_fill(x < x.topk(k).values[..., -1:], 0.0))


def nucleus(x, p, descending=True):
    """top_p that asks whether the tokens up to and with each one cover p, so that it ends one token early."""
    ranked, order = x.sort(-1, descending=descending)
    out = ranked.softmax(-1).cumsum(-1) > p
    return x.masked_fill(out.gather(-1, order.argsort(-1)), -torch.inf) if p < 1 else x


@bug("top_p drops the first token", head, "tiny top_p must still keep")
def _(w, m):
    m.setattr(heads, "top_p", nucleus)


@bug("top_p ends one token early", head, "of the time, its p is")
def _(w, m):
    m.setattr(heads, "top_p", lambda x, p: torch.maximum(nucleus(x, p), heads.top_k(x, 1)))


@bug("top_p from the unlikely end", head, "tiny top_p must still keep")
def _(w, m):
    m.setattr(heads, "top_p", lambda x, p: nucleus(x, p, descending=False))


@bug("the generator is not used", head, "the generator is not used")
def _(w, m):
    m.setattr(heads, "race", lambda p, generator=None: race(p))


@bug("race without a clock", sampler, "of the time, its p is")
def _(w, m):
    m.setattr(heads, "race", lambda p, generator=None: p.argmax(-1))


@bug("race with uniform clocks", sampler, "of the time, its p is")
def _(w, m):
    m.setattr(heads, "race", lambda p, generator=None: (p / torch.rand(p.shape, generator=generator)).argmax(-1))


@bug("race with one clock for all rows", sampler, "of the time, its p is")
def _(w, m):
    m.setattr(heads, "race", lambda p, generator=None: race(p[:1], generator).expand(len(p)))


@bug("race whose slowest wins", sampler, "whose probability is 0")
def _(w, m):
    m.setattr(heads, "race", lambda p, g=None: (p / torch.empty_like(p).exponential_(generator=g)).argmin(-1))


@bug("labels are dropped twice as often", dropped, "code 0 came 0.4")
def _(w, m):
    drop = ClassLabel.drop
    m.setattr(ClassLabel, "drop", lambda self, label, p: drop(self, label, 2 * p))


@bug("multinomial without the table", sampler, "whose probability is 0")
def _(w, m):
    m.setattr(
        heads, "race", lambda p, generator=None: torch.multinomial(torch.ones_like(p), 1, generator=generator)[:, 0]
    )


class Wrong(VectorQuantizer):
    """A VectorQuantizer with a screw for each thing that can be wrong."""

    def __init__(self, pick=None, terms=None, through=straight_through):
        super().__init__(32, 6)
        self.pick = pick or quantizers.nearest
        self.terms = terms or (lambda z, e, b: F.mse_loss(e, z.detach()) + b * F.mse_loss(z, e.detach()))
        self.through = through

    def forward(self, z):
        rows = to_rows(z)
        tokens = self.pick(rows.detach(), self.codebook.detach())
        quantizers.count(self.hits, tokens)
        code = F.embedding(tokens, self.codebook)
        return Quantized(to_map(self.through(rows, code), z.shape[2:]), tokens, self.terms(rows, code, self.beta))

    def encode(self, z):
        return self.pick(to_rows(z), self.codebook)


def farthest(rows, codes):
    return torch.cdist(rows, codes).argmax(-1)


def by_angle(rows, codes):
    return (rows @ codes.T).argmax(-1)


def wrong_terms(name, says, terms):
    bug(name, quantizer, says)(lambda w, m: setattr(w, "quantizer", Wrong(terms=terms)))


def sq(a, b, detach):
    """Squared error that pulls `a` alone, or both where the detach is missing."""
    return F.mse_loss(a, b.detach() if detach else b)


# z: encodings, e: their codes, b: beta. Right is sq(e, z, True) + b * sq(z, e, True).
commit, codebook = (
    "the commitment gradient (beta 0.25) of z is off",
    "the codebook gradient (no beta) of the codes is off",
)
wrong_terms("beta on the codebook term", commit, lambda z, e, b: b * sq(e, z, True) + sq(z, e, True))
wrong_terms("no detach in the codebook term", commit, lambda z, e, b: sq(e, z, False) + b * sq(z, e, True))
wrong_terms("no commitment term", commit, lambda z, e, b: sq(e, z, True))
wrong_terms("terms summed over the batch", commit, lambda z, e, b: len(z) * (sq(e, z, True) + b * sq(z, e, True)))
wrong_terms("no detach in the commitment term", codebook, lambda z, e, b: sq(e, z, True) + b * sq(z, e, False))
wrong_terms("no codebook term", codebook, lambda z, e, b: b * sq(z, e, True))
wrong_terms("no terms", commit, lambda z, e, b: 0 * e.sum())


@bug("the farthest code", quantizer, "the code chosen is not the nearest")
def _(w, m):
    w.quantizer = Wrong(farthest)


@bug("the largest dot product", quantizer, "the code chosen is not the nearest")
def _(w, m):
    w.quantizer = Wrong(by_angle)


@bug("the norm of the code forgotten in half", quantizer, "the code chosen is not the nearest")
def _(w, m):
    m.setattr(quantizers, "nearest", lambda z, e: (e.square().sum(-1) - z @ e.T).argmin(-1))
    w.quantizer = VectorQuantizer(32, 6)


@bug("no straight-through", quantizer, "no gradient reaches the encoder")
def _(w, m):
    w.quantizer = Wrong(through=lambda z, e: e)


@bug("straight-through of everything", quantizer, "no gradient reaches the encoder")
def _(w, m):
    w.quantizer = Wrong(through=lambda z, e: (z + (e - z)).detach())


@bug("straight-through twice", quantizer, "the straight-through gradient of z is off by 100.0%")
def _(w, m):
    w.quantizer = Wrong(through=lambda z, e: 2 * z + (e - 2 * z).detach())


@bug("the decoder is trained on z, not on codes", quantizer, "is not what the decoder saw in training")
def _(w, m):
    w.quantizer = Wrong(through=lambda z, e: z)


@bug("encode and forward measure differently", quantizer, "encode and forward choose different codes")
def _(w, m):
    w.quantizer = Wrong()
    w.quantizer.encode = lambda z: by_angle(to_rows(z), w.quantizer.codebook)


@bug("tokens column by column", quantizer, "encode and forward choose different codes")
def _(w, m):
    w.quantizer = VectorQuantizer(32, 6)
    right = w.quantizer.encode
    w.quantizer.encode = lambda z: right(z.transpose(2, 3))


@bug("encode counts hits", quantizer, "hits do not count the codes that forward used")
def _(w, m):
    def encode(self, z):
        tokens = VectorQuantizer.encode(self, z)
        quantizers.count(self.hits, tokens)
        return tokens

    w.quantizer = type("Quantizer", (VectorQuantizer,), {"encode": encode})(32, 6)


@bug("hits are never counted", quantizer, "hits do not count the codes that forward used")
def _(w, m):
    m.setattr(quantizers, "count", lambda hits, tokens: None)


def cosine(**methods):
    return type("Cosine", (CosineQuantizer,), methods)(32, 6)


@bug("cosine: decode without normalising", quantizer, "is not what the decoder saw in training")
def _(w, m):
    w.quantizer = cosine(lookup=lambda self, tokens: F.embedding(tokens, self.codebook))


@bug("cosine: encode by the raw dot product", quantizer, "encode and forward choose different codes")
def _(w, m):
    w.quantizer = cosine(encode=lambda self, z: by_angle(to_rows(z), self.codebook))


@bug("cosine: z enters raw", quantizer, "the straight-through gradient of z is off")
def _(w, m):
    def forward(self, z):
        out = VectorQuantizer.forward(self, z)
        code = F.embedding(out.tokens, self.space(self.codebook))
        return out._replace(z=to_map(straight_through(to_rows(z), code), z.shape[2:]))

    w.quantizer = cosine(forward=forward)


@bug("FSQ: place values shifted by one level", quantizer, "is not what the decoder saw in training")
def _(w, m):
    w.quantizer = FSQ((4, 5, 8))
    w.quantizer.place_value = torch.tensor([1, 4, 8])  # not 1, 4, 20


@bug("FSQ: decode without centring", quantizer, "is not what the decoder saw in training")
def _(w, m):
    w.quantizer = FSQ((4, 5, 8))
    w.quantizer.lookup = lambda tokens: FSQ.lookup(w.quantizer, tokens) + 1


@bug("FSQ: rounding without straight-through", quantizer, "no gradient reaches the encoder")
def _(w, m):
    m.setattr(quantizers, "straight_through", lambda z, code: code)
    w.quantizer = FSQ((4, 5, 8))


@bug("an unused layer", trained, "no gradient reaches spare.weight")
def _(w, m):
    class Spare(GPT):
        def __init__(self, *args):
            super().__init__(*args)
            self.spare = nn.Linear(2, 2, bias=False)

    w.GPT = Spare


@bug("a wire cut before the head", trained, "no gradient reaches trunk.")
def _(w, m):
    w.GPT = type("GPT", (GPT,), {"hidden": lambda self, *args: GPT.hidden(self, *args).detach()})


@bug("the quantizer's loss is forgotten", trained, "no gradient reaches quantizer.codebook")
def _(w, m):
    def forward(self, images):
        return F.mse_loss(self.decoder(self.quantizer(self.encoder(images)).z), images)

    w.VQVAE = type("VQVAE", (VQVAE,), {"forward": forward})


def test_every_law_catches_something():
    assert {law for law, _, _ in BUGS.values()} == set(LAWS)
    judged = {name for name in vars(laws) if name.startswith("check_")} - {"check_residual"}  # see test_next_scale
    used = {name for law in LAWS for name in law.__code__.co_names}
    assert judged <= used, f"no bug is planted for {judged - used}"


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{law.__name__}: {name}") for name, (law, *_) in BUGS.items()])
def test_planted_bug_is_caught(name, monkeypatch):
    law, plant, says = BUGS[name]
    w = world()
    plant(w, monkeypatch)
    with pytest.raises(AssertionError) as raised:
        law(w)
    assert says in str(raised.value)
