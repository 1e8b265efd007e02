"""Next-scale prediction: the quantizer of a pyramid, the model that follows it, and the bugs that their laws catch."""

import math
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from test_models import judge

from minar import (
    VQVAE,
    CategoricalHead,
    ClassLabel,
    Decoder,
    Encoder,
    TextPrefix,
    Transformer,
    fast,
    generate,
    laws,
    model_laws,
    quantizers,
)
from minar.lab import checkpoint, codebook, log, metrics
from minar.lab.train import fit
from minar.multi_scale import MultiScaleQuantizer, phi_index
from minar.next_scale import NextScaleAR, places
from minar.plan import raster, scales
from minar.quantizers import Quantized, straight_through, to_map, to_rows
from minar.resize import Resize

V, C, D = 24, 4, 32
PYRAMIDS = [(1, 2, 3), (2, 3, 5), (1, 2, 4, 5, 7), (3,)]


def latents(side, rows=6, seed=0):
    """Each image has a mean of its own, so that the coarsest scale has something to say."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, C, side, side, generator=generator) + 2 * torch.randn(rows, C, 1, 1, generator=generator)


def quantizer(sides=(1, 2, 3), cls=MultiScaleQuantizer):
    return laws.wake(cls(V, C, sides))


def model(sides=(1, 2, 3), words=0, cls=NextScaleAR):
    cond = TextPrefix(7, words, D) if words else ClassLabel(5, D)
    return laws.wake(cls(Transformer(D, 2, 2, hidden=D), cond, CategoricalHead(D, V), MultiScaleQuantizer(V, C, sides)))


def batch(sides=(1, 2, 3), words=0, rows=2):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(V, (rows, sum(side**2 for side in sides)), generator=generator)
    cond = torch.arange(rows) * 2 % 5
    if words:
        cond = (cond[:, None] + torch.randint(2, (rows, words), generator=generator)) % 7
    return tokens, cond


# The quantizer.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_resized_as_pytorch_resizes_them(dtype):
    sides = (1, 2, 3, 4, 5, 7, 12)
    resize = Resize(sides).to(dtype)  # half precision must not touch its matrices
    for k, side in enumerate(sides):
        small, large = latents(side), latents(12)
        assert (resize.up(small, k) - F.interpolate(small, size=(12, 12), mode="bicubic")).abs().max() < 2e-6
        assert (resize.down(large, k) - F.adaptive_avg_pool2d(large, side)).abs().max() < 2e-6


@pytest.mark.parametrize("sides", PYRAMIDS)
def test_laws_of_the_quantizer(sides):
    q = quantizer(sides)
    laws.check_residual(q, latents(sides[-1]))
    laws.check_quantizer(q, latents(sides[-1]))
    assert q.n_tokens == q.encode(latents(sides[-1])).shape[1] == sum(side**2 for side in sides)


@pytest.mark.parametrize(
    ("n_scales", "index"),
    [
        (4, [0, 1, 2, 3]),
        (5, [0, 1, 2, 2, 3]),
        (7, [0, 0, 1, 2, 2, 3, 3]),
        (10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
        (14, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_the_smoothing_of_each_scale_is_that_of_the_official_code(n_scales, index):
    assert list(phi_index(n_scales, 4)) == index


@pytest.mark.parametrize("n_scales", range(3, 16, 2))
def test_the_middle_of_an_odd_number_of_scales_ties_upwards(n_scales):
    assert phi_index(n_scales, 4)[n_scales // 2] == 2


@pytest.mark.parametrize("sides", [(4,), (2, 4), (1, 2, 4), (1, 2, 3, 4)])
def test_no_smoothing_is_idle(sides):
    q = quantizer(sides)
    assert set(q.which) == set(range(len(q.phi))) and len(q.phi) == len(set(phi_index(len(sides), 4)))
    laws.check_all_trained(VQVAE(Encoder(1, C, 8, (1, 1), 1), Decoder(1, C, 8, (1, 1), 1), q), torch.zeros(2, 1, 8, 8))


def test_changing_a_scale_changes_the_pictures_from_there_on():
    q, (tokens, _) = quantizer((1, 2, 3, 5)), batch((1, 2, 3, 5))
    before = [picture.detach() for picture in q.pictures(tokens)]
    for k, part in enumerate(torch.arange(q.n_tokens).split(q.sizes)):
        other = tokens.clone()
        other[:, part] = (other[:, part] + 1) % V
        moved = [float((a.detach() - b).abs().max()) for a, b in zip(q.pictures(other), before)]
        assert max(moved[:k], default=0) == 0 and min(moved[k:]) > 1e-3


def test_half_precision_changes_nothing():
    q, z = quantizer(), latents(3)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, picture, loss = q.encode(z), q.decode(q.encode(z)), q(z).loss
    assert torch.equal(tokens, q.encode(z)) and torch.equal(picture, q.decode(tokens)) and loss == q(z).loss
    assert picture.dtype == torch.float32


def test_codes_start_on_what_each_scale_has_to_say():
    q, z = laws.wake(MultiScaleQuantizer(40, C, (1, 2, 4))), latents(4, rows=5)
    q.start_from(z, torch.Generator().manual_seed(0))
    first, second = (rows.flatten(0, 1) for rows, _ in islice(q.walk(z), 2))
    assert len(q.codebook[:5].unique(dim=0)) == 5 and torch.cdist(q.codebook[:5], first).amin(1).max() < 1e-2
    assert torch.cdist(q.codebook[5:22], second).amin(1).max() < 1e-2, "half of the 35 codes that are left"
    assert len(q.codebook.unique(dim=0)) == 40 and bool(q.started) and not q.hits.any()
    assert all(len(part.unique()) > 3 for part in q.encode(z).split(q.sizes, 1)), "each scale uses its codes"


def test_a_code_that_one_scale_relies_on_stays_and_a_rare_one_moves():
    q, z = quantizer((1, 2, 3)), latents(3)
    q.hits[2] = 1000  # the finest scale uses all codes, and some of them hardly ..
    q.hits[2, :6] = 1
    q.hits[0, 0] = 1  # .. of which the coarsest uses the first, and nothing else
    q.hits[1, 6:] = 1
    assert q.dead.tolist() == [code in range(1, 6) for code in range(V)]
    before, rows = q.codebook.detach().clone(), torch.cat([rows.flatten(0, 1) for rows, _ in q.walk(z)]).detach()
    dead = q.dead
    assert q.restart(z, torch.Generator().manual_seed(0)) == 5 and not q.hits.any()
    assert torch.equal(q.codebook[~dead], before[~dead])
    assert torch.cdist(q.codebook[dead], rows).amin(1).max() < 1e-2, "they say what was left to say"


def test_restarts_serve_the_scales_in_turn():
    q, z = quantizer((1, 2, 3)), latents(3, rows=20)
    rows = [rows.flatten(0, 1).detach() for rows, _ in q.walk(z)]
    fresh = q.fresh(z, torch.Generator().manual_seed(0)).detach()
    of = torch.stack([torch.cdist(fresh, r).amin(1) for r in rows]).argmin(0)
    assert torch.equal(of, torch.arange(V) % 3)


def blobs(n=64, side=8):
    """A bright blob on a ground of any grey: coarse and fine things to say."""
    generator = torch.Generator().manual_seed(0)
    x, y, grey = torch.rand(3, n, 1, 1, generator=generator)
    line = torch.linspace(0, 1, side)
    blob = torch.exp(-30 * ((line - x) ** 2 + (line[:, None] - y) ** 2))
    return (grey * 1.2 - 0.9 + 0.7 * blob)[:, None].clamp(-1, 1)


def tokenizer(vocab=48, sides=(1, 2, 4)):
    torch.manual_seed(0)
    q = MultiScaleQuantizer(vocab, C, sides)
    return VQVAE(Encoder(1, C, 8, (1, 1), 1), Decoder(1, C, 8, (1, 1), 1), q)


def trained(monkeypatch, **options):
    """A tokenizer after 200 steps, and the log. Restarts come five times as often as usual, the run being short."""
    monkeypatch.setattr(codebook, "EVERY", 20)
    model = tokenizer()
    options = {"batch": 16, "lr": 5e-3, "device": "cpu", "progress": False, "log_every": 50} | options
    return model, fit(model, (blobs(),), 200, **options)


def test_it_trains_and_all_scales_are_in_use(monkeypatch, tmp_path):
    model, lines = trained(monkeypatch, out=tmp_path)
    images, (usage, perplexity) = blobs(), (lines[-1]["usage"], lines[-1]["perplexity"])
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert len(usage) == len(perplexity) == 3
    assert min(usage) > 0.12 and min(perplexity) > 5, "no scale may collapse to a handful of codes"
    z = model.encoder(images).detach()
    errors = [float((p.detach() - z).square().mean()) for p in model.quantizer.pictures(model.quantizer.encode(z))]
    assert errors == sorted(errors, reverse=True), "after training each scale brings the picture nearer"
    again = checkpoint.load(tmp_path / "model.safetensors")
    assert again.quantizer.sides == (1, 2, 4) and torch.equal(again.reconstruct(images), model.reconstruct(images))


def test_without_its_own_restarts_the_coarsest_scale_collapses(monkeypatch):
    monkeypatch.setattr(MultiScaleQuantizer, "dead", property(lambda self: (self.hits == 0).all(0)))
    _, lines = trained(monkeypatch)
    assert lines[-1]["perplexity"][0] < 4 < lines[-1]["perplexity"][2]


def test_use_is_told_per_scale():
    hits = torch.tensor([[4, 0, 0, 0], [1, 1, 0, 0], [3, 3, 3, 3]])
    told = log.codes_in_use(hits)
    assert told["usage"] == [0.25, 0.5, 1] and told["perplexity"] == pytest.approx([1, 2, 4])
    assert log.percent(told["usage"]) == "25/50/100%"
    alone = log.codes_in_use(hits[1])
    assert alone == {"usage": metrics.usage(hits[1]), "perplexity": metrics.perplexity(hits[1])}
    assert log.percent(alone["usage"]) == "50%"


# The model.


@pytest.mark.parametrize("words", [0, 3], ids=["class", "text"])
@pytest.mark.parametrize("sides", [(1, 2, 3), (2, 3), (1, 2, 3, 5)])
def test_laws_of_the_model(sides, words):
    judge(model(sides, words), *batch(sides, words), scales(sides))


def test_one_graph_and_nothing_waits_for_a_value():
    plan = scales((1, 2, 3))
    model_laws.check_meta(model(), *batch(), plan)
    model_laws.check_one_graph(model(), *batch(), lambda seed: plan)


def test_every_parameter_is_trained_but_the_quantizer():
    m = model()
    laws.check_all_trained(m, *batch(), scales((1, 2, 3)))
    assert not any(p.requires_grad for p in m.quantizer.parameters())


def test_it_keeps_a_quantizer_of_its_own():
    q = quantizer()
    m = NextScaleAR(Transformer(D, 1, 2, hidden=D), ClassLabel(5, D), CategoricalHead(D, V), q)
    q.codebook.data.zero_()
    assert m.quantizer.codebook.any() and q.codebook.requires_grad and not m.quantizer.codebook.requires_grad


def test_a_slot_stands_where_the_centre_of_its_cell_lies():
    one, two, three = places((1, 2, 3)).split([1, 4, 9])
    assert one.tolist() == [4] and two.tolist() == [0, 2, 6, 8] and three.tolist() == list(range(9))
    for sides in PYRAMIDS:
        parts = places(sides).split([side**2 for side in sides])
        assert all(len(part.unique()) == len(part) for part in parts), "no two slots of a scale stand on one place"


def test_fast_decoding_gives_the_same_tokens():
    m, (_, cond), plan = model(), batch(), scales((1, 2, 3))
    for cfg in (1.0, 2.0):
        expected = generate(m, cond, plan, cfg, temperature=0)
        assert torch.equal(fast.generate(m, cond, plan, cfg, temperature=0), expected)


def test_fit_learns_and_checkpoints(tmp_path):
    sides = (1, 2, 3)
    m, (tokens, cond) = model(), batch(rows=32)
    m.head.weight.data.zero_()
    frozen = {k: v.clone() for k, v in m.quantizer.state_dict().items()}
    tokens = tokens // 12 * 12 + cond[:, None]  # something to learn
    lines = fit(
        m, (tokens, cond), 60, 16, lr=5e-3, device="cpu", progress=False, log_every=20, plan=scales(sides), out=tmp_path
    )
    assert lines[-1]["loss"] < 0.7 * math.log(V) and "usage" not in lines[-1]
    assert all(torch.equal(v, frozen[k]) for k, v in m.quantizer.state_dict().items()), "the quantizer has moved"
    again = checkpoint.load(tmp_path / "model.safetensors")
    drawn = generate(again, cond, scales(sides), temperature=0)
    assert torch.equal(drawn, generate(m, cond, scales(sides), temperature=0))
    assert again.quantizer.decode(drawn).shape == (32, C, 3, 3)


# Planted bugs: the test ids are the table of which law catches which.


def residual(cls):
    laws.check_residual(quantizer((1, 2, 3), cls), latents(3))


def peeking(cls):
    model_laws.check_no_peeking(model(cls=cls), *batch(), scales((1, 2, 3)))


def cache(cls):
    model_laws.check_cache(model(cls=cls), *batch(), scales((1, 2, 3)))


def counts(cls):
    model_laws.check_every_token_counts(model(cls=cls), *batch(), scales((1, 2, 3)))


def twins(cls):
    model_laws.check_no_twins(model(cls=cls), *batch(), scales((1, 2, 3)))


RIGHT = {
    residual: MultiScaleQuantizer,
    peeking: NextScaleAR,
    cache: NextScaleAR,
    counts: NextScaleAR,
    twins: NextScaleAR,
}


@pytest.mark.parametrize("law", RIGHT)
def test_without_a_bug_the_law_holds(law):
    law(RIGHT[law])


BUGS = {}


def area(x, side):
    return F.adaptive_avg_pool2d(x, side)


def bicubic(x, side):
    return F.interpolate(x, size=(side, side), mode="bicubic")


def bug(name, law, says):
    """A class with one method that is wrong."""

    def keep(method):
        BUGS[name] = law, type(RIGHT[law].__name__, (RIGHT[law],), {method.__name__: method}), says
        return method

    return keep


@bug("encode without phi", residual, "does not take the nearest codes of what is left")
def walk(self, z):
    left = z
    for side in self.sides:
        rows = to_rows(area(left, side))
        tokens = quantizers.nearest(rows, self.codebook)
        yield rows, tokens
        left = left - bicubic(to_map(self.lookup(tokens)), self.sides[-1])


@bug("the residual is shrunk, and shrunk again", residual, "does not take the nearest codes of what is left")
def walk(self, z):  # noqa: F811
    left = z
    for k, side in enumerate(self.sides):
        left = area(left, max(side, 2))  # not kept at full size
        rows = to_rows(area(left, side))
        tokens = quantizers.nearest(rows, self.codebook)
        yield rows, tokens
        left = bicubic(left, 3) - self.paint(tokens, k)


@bug("the residual is not what is left but z, at each scale", residual, "scale 1 does not take the nearest codes")
def walk(self, z):  # noqa: F811
    for side in self.sides:
        rows = to_rows(area(z, side))
        yield rows, quantizers.nearest(rows, self.codebook)


@bug("phi before upsampling", residual, "adds another map to the picture")
def paint(self, tokens, k):
    return bicubic(self.phi[self.which[k]](to_map(self.lookup(tokens))), self.sides[-1])


@bug("phi of the scale before", residual, "adds another map to the picture")
def paint(self, tokens, k):  # noqa: F811
    return self.phi[self.which[k - 1]](bicubic(to_map(self.lookup(tokens)), self.sides[-1]))


@bug("bilinear, not bicubic", residual, "adds another map to the picture")
def paint(self, tokens, k):  # noqa: F811
    codes, side = to_map(self.lookup(tokens)), self.sides[-1]
    return self.phi[self.which[k]](F.interpolate(codes, size=(side, side), mode="bilinear"))


@bug("resize at the last scale", residual, "scale 2 adds another map to the picture")
def paint(self, tokens, k):  # noqa: F811
    """To its own side a resize changes nothing; the last scale taken for the one before it is resized to that."""
    codes = area(to_map(self.lookup(tokens)), self.sides[min(k, len(self.sides) - 2)])
    return self.phi[self.which[k]](bicubic(codes, self.sides[-1]))


@bug("the picture is the last scale alone", residual, "scale 2 does not take the nearest codes of what is left")
def pictures(self, tokens):
    for k, part in enumerate(tokens.split(self.sizes, 1)):
        yield self.paint(part, k)


@bug("wrong scale read: its own", residual, "scale 1 does not read the picture after scale 0")
def so_far(self, tokens, n_scales=None):
    pictures = list(self.pictures(tokens))
    known = [to_rows(area(p, side)) for p, side in zip(pictures[1:], self.sides[1:])]
    return torch.cat([torch.zeros(len(tokens), 1, C), *known], 1)


@bug("wrong scale read: the one before alone, not the picture", residual, "scale 2 does not read the picture")
def so_far(self, tokens, n_scales=None):  # noqa: F811
    added = [self.paint(part, k) for k, part in enumerate(tokens.split(self.sizes, 1))]
    known = [to_rows(area(p, side)) for p, side in zip(added, self.sides[1:])]
    return torch.cat([torch.zeros(len(tokens), 1, C), *known], 1)


@bug("the picture is read at another side: nearest, not area", residual, "scale 1 does not read the picture")
def so_far(self, tokens, n_scales=None):  # noqa: F811
    known = [to_rows(F.interpolate(p, side)) for side, p in zip(self.sides[1:], self.pictures(tokens))]
    return torch.cat([torch.zeros(len(tokens), 1, C), *known], 1)


def forward_with(z, terms, pictures, tokens, self):
    quantizers.count(self.hits.view(-1), tokens + self.scale * self.vocab)
    return Quantized(straight_through(z, pictures[-1]), tokens, torch.stack(terms).mean())


@bug("residual from the undetached", residual, "the commitment gradient (beta 0.25) of z is off")
def forward(self, z):
    """Codes pass gradients straight to the residual that they were picked for: the codebook term pulls encodings."""
    picture, pictures, chosen = 0, [], []
    for k, side in enumerate(self.sides):
        rows = to_rows(area(z - picture, side))
        chosen.append(quantizers.nearest(rows, self.codebook))
        codes = to_map(straight_through(rows, self.lookup(chosen[-1])) + 0 * self.codebook.sum())
        picture = picture + self.phi[self.which[k]](bicubic(codes, self.sides[-1]))
        pictures.append(picture)
    terms = [F.mse_loss(p, z.detach()) + self.beta * F.mse_loss(z, p.detach()) for p in pictures]
    return forward_with(z, terms, pictures, torch.cat(chosen, 1), self)


@bug("the loss of the last picture alone", residual, "gradient (beta 0.25) of z is off")
def forward(self, z):  # noqa: F811
    tokens = self.encode(z)
    pictures = list(self.pictures(tokens))
    terms = [F.mse_loss(p, z.detach()) + self.beta * F.mse_loss(z, p.detach()) for p in pictures[-1:]]
    return forward_with(z, terms, pictures, tokens, self)


@bug("beta on the codebook term", residual, "the commitment gradient (beta 0.25) of z is off")
def forward(self, z):  # noqa: F811
    tokens = self.encode(z)
    pictures = list(self.pictures(tokens))
    terms = [self.beta * F.mse_loss(p, z.detach()) + F.mse_loss(z, p.detach()) for p in pictures]
    return forward_with(z, terms, pictures, tokens, self)


@bug("usage counted on the wrong axis", residual, "hits[0] do not count the codes that scale 0 used")
def forward(self, z):  # noqa: F811
    before = self.hits.clone()
    out = MultiScaleQuantizer.forward(self, z)
    quantizers.count(self.hits.copy_(before).view(-1), out.tokens * len(self.sides) + self.scale)
    return out


@bug("usage of all scales counted as the first one's", residual, "hits[0] do not count the codes that scale 0 used")
def forward(self, z):  # noqa: F811
    before = self.hits.clone()
    out = MultiScaleQuantizer.forward(self, z)
    quantizers.count(self.hits.copy_(before)[0], out.tokens)
    return out


@bug("level mixed up: counted from the first slot in hand", cache, "with a cache step 1 differs")
def read(self, tokens, prefix, plan, slots):
    x, rope = NextScaleAR.read(self, tokens, prefix, plan, slots)
    level = plan.step[slots]
    return x - self.level(level) + self.level(level - level[0]), rope


@bug("a slot reads the picture with its own scale in it", peeking, "sees its own tokens or later")
def read(self, tokens, prefix, plan, slots):  # noqa: F811
    x, rope = NextScaleAR.read(self, tokens, prefix, plan, slots)
    whole = list(self.quantizer.pictures(tokens))
    own = torch.cat([to_rows(area(p, side)) for p, side in zip(whole, self.quantizer.sides)], 1)
    return x - self.embed(self.quantizer.so_far(tokens))[:, slots] + self.embed(own)[:, slots], rope


@bug("slots of a scale read one pixel of the picture", counts, "is never used")
def read(self, tokens, prefix, plan, slots):  # noqa: F811
    blind = tokens.clone()
    blind[:, 2:5] = 0
    return NextScaleAR.read(self, blind, prefix, plan, slots)


@bug("no slot is told where its token goes", twins, "are twins")
def read(self, tokens, prefix, plan, slots):  # noqa: F811
    _, rope = NextScaleAR.read(self, tokens, prefix, plan, slots)
    return prefix[:, -1:] + self.level(plan.step[slots]) + 0 * tokens[:, slots, None], 0 * rope


@pytest.mark.parametrize("name", [pytest.param(name, id=f"{law.__name__}: {name}") for name, (law, *_) in BUGS.items()])
def test_planted_bug_is_caught(name):
    law, cls, says = BUGS[name]
    with pytest.raises(AssertionError) as raised:
        law(cls)
    assert says in str(raised.value)


# Bad input: one line that says what is wrong.


def refuses(what, says):
    with pytest.raises((ValueError, checkpoint.CheckpointError)) as raised:
        what()
    assert says in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("sides", [(1, 3, 2), (1, 2, 2), (), (0, 1)])
def test_sides_that_do_not_grow(sides):
    refuses(lambda: MultiScaleQuantizer(V, C, sides), f"the sides of the scales must grow, got {sides}")


def test_fewer_codes_than_scales():
    refuses(lambda: MultiScaleQuantizer(3, C, (1, 2, 3, 4)), "3 codes cannot start 4 scales")


@pytest.mark.parametrize("how", ["forward", "encode", "start_from", "restart"])
@pytest.mark.parametrize("size", [(4, 4), (3, 4), (2, 2)])
def test_a_latent_of_another_side(how, size):
    z = torch.zeros(2, C, *size)
    refuses(lambda: getattr(quantizer(), how)(z), f"the last scale is 3x3, the latent {size[0]}x{size[1]}")


def test_images_whose_latent_does_not_fit():
    images = blobs(side=16)
    refuses(lambda: fit(tokenizer(), (images,), 2, 4, device="cpu", progress=False), "is 4x4, the latent 8x8")
    refuses(lambda: tokenizer().encode(images), "the last scale is 4x4, the latent 8x8")
    refuses(lambda: tokenizer().decode(torch.zeros(2, 21).long(), (4, 5)), "the last scale is 4x4, the latent 4x5")


def test_tokens_of_another_pyramid():
    tokens, cond = batch((1, 2, 4))
    refuses(lambda: quantizer().decode(tokens), "a pyramid (1, 2, 3) has 14 tokens, got (2, 21)")
    refuses(lambda: quantizer().so_far(tokens), "a pyramid (1, 2, 3) has 14 tokens, got (2, 21)")
    refuses(lambda: model()(tokens, cond, scales((1, 2, 3))), "an image has 14 tokens, got 21 per row")


@pytest.mark.parametrize("plan", [scales((1, 2, 4)), scales((2, 3)), raster(2, 7)], ids=["larger", "other", "raster"])
def test_a_plan_of_another_pyramid(plan):
    tokens, cond = batch()
    says = "the tokens are a pyramid (1, 2, 3): give the plan scales((1, 2, 3)), got steps"
    refuses(lambda: model()(tokens, cond, plan), says)
    refuses(lambda: generate(model(), cond, plan), says)
    options = {"device": "cpu", "progress": False, "plan": plan}
    refuses(lambda: fit(model(), (tokens, cond), 2, 2, **options), says)


def test_a_head_of_another_vocabulary():
    parts = Transformer(D, 1, 2, hidden=D), ClassLabel(5, D), CategoricalHead(D, V + 1)
    refuses(lambda: NextScaleAR(*parts, quantizer()), "the head draws 25 codes, the quantizer has 24")


def test_a_checkpoint_of_other_sides(tmp_path):
    images, options = blobs(), {"batch": 8, "device": "cpu", "progress": False, "out": tmp_path}
    fit(tokenizer(), (images,), 2, **options)
    refuses(lambda: fit(tokenizer(sides=(1, 3, 4)), (images,), 2, **options), "was written by another architecture")
    tensors, _ = checkpoint.read(tmp_path / "model.safetensors")
    refuses(
        lambda: checkpoint.fill(tokenizer(sides=(2, 4)), tensors), "'quantizer.hits' is (3, 48), VQVAE expects (2, 48)"
    )
