"""The port of VAR computes what the official classes compute, loads what is official, and names what is wrong."""

import hashlib
import math
import re
from fractions import Fraction
from itertools import chain, pairwise

import probes
import pytest
import torch
import torch.nn.functional as F
from probes import OFFICIAL, differs

from minar import VQVAE, Decoder, Encoder, KVCache, VectorQuantizer
from minar.lab import checkpoint
from minar.lab.checkpoint import CheckpointError
from minar.ports import var, var_vae
from minar.ports.var import load_transformer, load_vae
from minar.quantizers import to_map

VAE, GPT, SHARED = OFFICIAL["var_vae"], OFFICIAL["var_gpt"], OFFICIAL["var_gpt_shared_aln"]
SIDES = tuple(VAE["patch_nums"])
IDS = torch.tensor([list(chain(*VAE[f"ids{b}"])) for b in range(2)])  # (2, 30), scale behind scale
GREEDY = [list(chain(*GPT[f"greedy_ids{b}"])) for b in range(2)]
LABEL = torch.tensor(GPT["labels"])
PIXELS_256, PIXELS_512 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

# The official names and shapes.


def conv(name, out, in_, side=3):
    return {f"{name}.weight": (out, in_, side, side), f"{name}.bias": (out,)}


def norm(name, c):
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def linear(name, out, in_):
    return {f"{name}.weight": (out, in_), f"{name}.bias": (out,)}


def block(name, a, b):
    shapes = norm(f"{name}.norm1", a) | conv(f"{name}.conv1", b, a)
    shapes |= norm(f"{name}.norm2", b) | conv(f"{name}.conv2", b, b)
    return shapes | (conv(f"{name}.nin_shortcut", b, a, 1) if a != b else {})


def attention(name, c):
    return norm(f"{name}.norm", c) | conv(f"{name}.qkv", 3 * c, c, 1) | conv(f"{name}.proj_out", c, c, 1)


def level(name, a, b, n_blocks, lowest):
    shapes = {}
    for i in range(n_blocks):
        shapes |= block(f"{name}.block.{i}", b if i else a, b)
        shapes |= attention(f"{name}.attn.{i}", b) if lowest else {}
    return shapes


def vae_shapes(width=32, mults=(1, 1, 2, 2, 4), z=8, vocab=32, n_phi=4, kernel=3, n_blocks=2):
    widths = [width * m for m in mults]
    low, n = widths[-1], len(mults)
    shapes = conv("encoder.conv_in", width, 3) | conv("encoder.conv_out", z, low) | norm("encoder.norm_out", low)
    shapes |= conv("decoder.conv_in", low, z) | conv("decoder.conv_out", 3, widths[0])
    shapes |= norm("decoder.norm_out", widths[0])
    shapes |= conv("quant_conv", z, z, kernel) | conv("post_quant_conv", z, z, kernel)
    for mid in ("encoder.mid", "decoder.mid"):
        shapes |= (
            block(f"{mid}.block_1", low, low) | attention(f"{mid}.attn_1", low) | block(f"{mid}.block_2", low, low)
        )
    for i, b in enumerate(widths):
        shapes |= level(f"encoder.down.{i}", widths[max(i - 1, 0)] if i else width, b, n_blocks, i == n - 1)
        shapes |= level(f"decoder.up.{i}", widths[min(i + 1, n - 1)], b, n_blocks + 1, i == n - 1)
        shapes |= conv(f"encoder.down.{i}.downsample.conv", b, b) if i < n - 1 else {}
        shapes |= conv(f"decoder.up.{i}.upsample.conv", b, b) if i else {}
    for i in range(n_phi):
        shapes |= conv(f"quantize.quant_resi.qresi_ls.{i}", z, z)
    return shapes | {"quantize.embedding.weight": (vocab, z)}


def gpt_shapes(width=128, depth=2, n_heads=2, sides=SIDES, z=8, vocab=32, n_classes=10, shared=False, l2_norm=True):
    shapes = linear("word_embed", width, z) | linear("head_nm.ada_lin.1", 2 * width, width)
    shapes |= linear("head", vocab, width) | (linear("shared_ada_lin.1", 6 * width, width) if shared else {})
    for name in (f"blocks.{i}" for i in range(depth)):
        shapes |= {f"{name}.attn.mat_qkv.weight": (3 * width, width)}
        shapes |= {f"{name}.attn.{x}_bias": (width,) for x in "qv"}
        shapes |= {f"{name}.attn.scale_mul_1H11": (1, n_heads, 1, 1)} if l2_norm else {}
        shapes |= linear(f"{name}.attn.proj", width, width)
        shapes |= linear(f"{name}.ffn.fc1", 4 * width, width) | linear(f"{name}.ffn.fc2", width, 4 * width)
        adaln = {f"{name}.ada_gss": (1, 1, 6, width)} if shared else linear(f"{name}.ada_lin.1", 6 * width, width)
        shapes |= adaln
    return shapes | {
        "pos_start": (1, sides[0] ** 2, width),
        "pos_1LC": (1, sum(side**2 for side in sides), width),
        "class_emb.weight": (n_classes + 1, width),
        "lvl_embed.weight": (len(sides), width),
    }


def buffers(shapes):
    """What the official files hold besides the parameters."""
    width, L = shapes["pos_1LC"][2], shapes["pos_1LC"][1]
    zeros = {k.replace("q_bias", "zero_k_bias"): (width,) for k in shapes if k.endswith("q_bias")}
    return {"lvl_1L": (1, L), "attn_bias_for_masking": (1, 1, L, L)} | zeros


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def n_params(model):
    return sum(p.numel() for p in model.parameters())


def n_own(model):
    return n_params(model) - n_params(model.quantizer)


@pytest.fixture(scope="module")
def vae():
    return load_vae(probes.fill(vae_shapes()), SIDES)


@pytest.fixture(scope="module")
def state():
    return probes.fill(gpt_shapes())


@pytest.fixture(scope="module")
def gpt(state, vae):
    return load_transformer(state, vae, n_heads=2)


@pytest.fixture(scope="module")
def images():
    return probes.image(2, 64, 64)


# The probes.


@torch.no_grad()
def test_vae(vae, images):
    z = vae.encoder(images)
    quantized = vae.quantizer(z)
    assert n_params(vae) == VAE["n_params"] and len(vae_shapes()) == VAE["n_tensors"]
    assert list(vae.quantizer.index) == VAE["phi_index"]
    assert differs(z, VAE["f"]) < 2e-5
    assert torch.equal(quantized.tokens, IDS) and torch.equal(vae.encode(images), IDS)
    assert abs(float(quantized.loss) - VAE["vq_loss"]) < 2e-5
    sums = vae.quantizer.accumulate(IDS)
    for x, told in zip(sums, VAE["fhat_per_scale_absmean"]):
        assert abs(float(x.abs().mean()) - told) < 2e-5
    assert differs(sums[-1], VAE["fhat_last"]) < 2e-5
    assert differs(quantized.z, VAE["fhat_last"]) < 2e-5
    assert differs(vae.quantizer.inputs(IDS), VAE["var_input"]) < 2e-5
    assert differs(vae.decode(IDS), VAE["rec"]) < 1e-3
    assert torch.equal(vae.reconstruct(images), vae.decode(IDS))


@torch.no_grad()
def test_gpt(gpt):
    logits = gpt.logits(IDS, LABEL)
    assert n_own(gpt) == GPT["n_params"]
    assert differs(logits, GPT["logits"]) < 2e-5
    assert logits[0].argmax(-1).tolist() == GPT["argmax0"]
    assert abs(float(gpt(IDS, LABEL, p_drop=0.0)) - GPT["loss"]) < 2e-5


@torch.no_grad()
def test_shared_adaln(vae):
    gpt = load_transformer(probes.fill(gpt_shapes(shared=True)), vae, n_heads=2)
    assert gpt.shared and n_own(gpt) == SHARED["n_params"]
    assert differs(gpt.logits(IDS, LABEL), SHARED["logits"]) < 2e-5


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("greedy", [{"top_k": 1}, {"temperature": 0}], ids=["top_k 1", "temperature 0"])
def test_greedy_under_guidance(gpt, vae, use_cache, greedy):
    tokens = gpt.generate(LABEL, cfg=1.5, use_cache=use_cache, **greedy)
    assert tokens.tolist() == GREEDY
    assert differs((vae.decode(tokens) + 1) / 2, GPT["greedy_topk1_cfg1.5_img"]) < 1e-3


def test_phi_index():
    assert var_vae.phi_index(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert var_vae.phi_index(14, 4) == (0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3)
    assert var_vae.phi_index(4, 4) == (0, 1, 2, 3)
    assert var_vae.phi_index(5, 4) == (0, 1, 2, 2, 3)
    assert var_vae.phi_index(7, 4) == (0, 0, 1, 2, 2, 3, 3)
    assert var_vae.phi_index(6, 3) == (0, 0, 1, 1, 2, 2)
    assert var_vae.phi_index(3, 1) == (0, 0, 0)
    ticks = [Fraction(1, 12) + Fraction(5, 18) * k for k in range(4)]
    exact = [min(range(4), key=lambda k: abs(ticks[k] - Fraction(s, 9))) for s in range(10)]
    assert exact == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]  # so ties are not broken by exact numbers


# Bugs that are easy to make: each must move away from a probe. The test ids are the table.


def logits_differ(gpt, vae):
    return differs(gpt.logits(IDS, LABEL), GPT["logits"])


def inputs_differ(gpt, vae):
    return differs(vae.quantizer.inputs(IDS), VAE["var_input"])


def codes_differ(gpt, vae):
    return float((vae.encode(probes.image(2, 64, 64)) != IDS).any())


def greedy_differs(gpt, vae):
    return float(gpt.generate(LABEL, cfg=1.5, temperature=0).tolist() != GREEDY)


def phi_first(self, tokens, s):
    h = self.phi[self.index[s]](to_map(self.embedding(tokens)))
    return F.interpolate(h, self.sides[-1], mode="bicubic") if s < len(self.sides) - 1 else h


def bilinear(self, tokens, s):
    h = F.interpolate(to_map(self.embedding(tokens)), self.sides[-1], mode="bilinear")
    return self.phi[self.index[s]](h)


def newest_only(self, tokens):
    sums = self.accumulate(tokens)
    added = [sums[0]] + [b - a for a, b in pairwise(sums)]
    return torch.cat([self.shrink(x, s) for s, x in enumerate(added[:-1], start=1)], 1)


def diffusion_order(self, c):
    shift1, scale1, gamma1, shift2, scale2, gamma2 = self.ada_lin(c)[:, None].chunk(6, -1)
    return gamma1, gamma2, scale1, scale2, shift1, shift2


def level_not_at_start(self):
    return self.lvl_embed(self.levels()).index_fill(0, torch.tensor([0]), 0.0) + self.pos_1LC[0]


def shift_first(self, x, c):
    shift, scale = self.ada_lin(c)[:, None].chunk(2, -1)
    return var.modulate(var.layer_norm(x), scale, shift)


BUGS = {
    "phi before upsampling": (var_vae.VARQuantizer, "grow", phi_first, inputs_differ),
    "phi before upsampling, seen by the codes": (var_vae.VARQuantizer, "grow", phi_first, codes_differ),
    "bilinear instead of bicubic": (var_vae.VARQuantizer, "grow", bilinear, inputs_differ),
    "the newest scale read instead of the sum": (var_vae.VARQuantizer, "inputs", newest_only, inputs_differ),
    "AdaLN in the order of DiT": (var.Block, "six", diffusion_order, logits_differ),
    "shift before scale in front of the head": (var.LastNorm, "forward", shift_first, logits_differ),
    "q and k not normalised": (var.F, "normalize", lambda x, dim: x, logits_differ),
    "no level embedding on the start token": (var.VARTransformer, "places", level_not_at_start, logits_differ),
    "guidance without the ramp": (var, "ramp", lambda cfg, s, n_scales: cfg, greedy_differs),
    "guidance in LlamaGen's convention": (var, "ramp", lambda cfg, s, n: cfg * s / (n - 1) - 1, greedy_differs),
}


@torch.no_grad()
@pytest.mark.parametrize("where, name, bug, difference", BUGS.values(), ids=BUGS)
def test_a_planted_bug_is_caught(gpt, vae, monkeypatch, where, name, bug, difference):
    assert difference(gpt, vae) < 2e-5
    monkeypatch.setattr(where, name, bug)
    assert difference(gpt, vae) > 1e-3


# Other sizes.

SMALL = {  # name: (sizes of the tokenizer, sides, sizes of the transformer)
    "three scales, 1x1": (
        {"mults": (1, 2), "z": 4, "vocab": 24, "n_phi": 2, "kernel": 1, "n_blocks": 1},
        (1, 3, 4),
        {"width": 48, "depth": 1, "n_heads": 3, "n_classes": 4},
    ),
    "five scales, shared": (
        {"mults": (1, 1, 2), "z": 6, "vocab": 40},
        (1, 2, 3, 5, 6),
        {"width": 32, "depth": 3, "n_heads": 4, "n_classes": 7, "shared": True},
    ),
    "plain attention, from 2x2": (
        {"mults": (2, 1), "z": 5, "vocab": 17, "n_phi": 2},
        (2, 5),
        {"width": 40, "depth": 2, "n_heads": 2, "n_classes": 3, "l2_norm": False},
    ),
}


def draw_state(shapes, seed):
    """Random weights, livelier than the rule's: no two slots are alike, and some heads are as sharp as may be."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) * spread(name, shape) for name, shape in shapes.items()}
    for name, x in state.items():
        if name.endswith("scale_mul_1H11"):
            x[:] = torch.linspace(0, 6, x.shape[1])[None, :, None, None]
    return state


def spread(name, shape):
    if name.startswith(("pos_", "lvl_", "class_")):
        return 1
    return 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    """(state of the transformer, transformer, tokenizer, images, labels) of another size."""
    vae_sizes, sides, gpt_sizes = SMALL[request.param]
    vae = load_vae(draw_state(vae_shapes(**vae_sizes), 1), sides)
    codes = {"sides": sides, "z": vae_sizes["z"], "vocab": vae_sizes["vocab"]}
    state = draw_state(gpt_shapes(**gpt_sizes, **codes), 2)
    gpt = load_transformer(state, vae, gpt_sizes["n_heads"])
    side = sides[-1] * vae.encoder.factor
    return state, gpt, vae, probes.image(3, side, side), torch.tensor([0, gpt.n_classes, 1])


def written_out(state, vectors, label, sides, n_heads):
    """The official forward, formula by formula."""

    def affine(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def normed(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    cond = state["class_emb.weight"][label]
    silu = cond * cond.sigmoid()
    at = torch.cat([torch.full((side**2,), s) for s, side in enumerate(sides)])
    x = torch.cat([cond[:, None] + state["pos_start"], affine("word_embed", vectors)], 1)
    x = x + state["lvl_embed.weight"][at] + state["pos_1LC"]
    D = x.shape[-1]
    for name in (f"blocks.{i}" for i in range(99) if f"blocks.{i}.ffn.fc1.weight" in state):
        if f"{name}.ada_gss" in state:
            six = affine("shared_ada_lin.1", silu).view(-1, 1, 6, D) + state[f"{name}.ada_gss"]
        else:
            six = affine(f"{name}.ada_lin.1", silu).view(-1, 1, 6, D)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
        y = (normed(x) * (1 + scale1) + shift1) @ state[f"{name}.attn.mat_qkv.weight"].T
        q, k, v = y.split(D, -1)
        q, v = q + state[f"{name}.attn.q_bias"], v + state[f"{name}.attn.v_bias"]
        q, k, v = (t.view(*t.shape[:2], n_heads, -1).transpose(1, 2) for t in (q, k, v))
        if f"{name}.attn.scale_mul_1H11" in state:
            q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
            q = q * state[f"{name}.attn.scale_mul_1H11"].exp().clamp(max=100)
        else:
            q = q * 0.25 / (D // n_heads) ** 0.5
        weight = (q @ k.transpose(-1, -2)).masked_fill(at[:, None] < at, -torch.inf).softmax(-1)
        x = x + gamma1 * affine(f"{name}.attn.proj", (weight @ v).transpose(1, 2).reshape(x.shape))
        y = affine(f"{name}.ffn.fc1", normed(x) * (1 + scale2) + shift2)
        y = y / 2 * (1 + ((2 / math.pi) ** 0.5 * (y + 0.044715 * y**3)).tanh())
        x = x + gamma2 * affine(f"{name}.ffn.fc2", y)
    scale, shift = affine("head_nm.ada_lin.1", silu)[:, None].split(D, -1)
    return affine("head", normed(x) * (1 + scale) + shift)


@torch.no_grad()
def test_of_any_size_it_is_the_official_forward(small):
    state, gpt, vae, images, label = small
    tokens = vae.encode(images)
    expected = written_out(state, vae.quantizer.inputs(tokens), label, vae.quantizer.sides, gpt.n_heads)
    assert (gpt.logits(tokens, label) - expected).abs().max() < 2e-5
    assert abs(float(gpt(tokens, label, p_drop=0.0)) - float(F.cross_entropy(expected.mT, tokens))) < 2e-5


@torch.no_grad()
@pytest.mark.parametrize("cfg", [0, 2.5])
def test_cached_is_uncached_is_teacher_forced(small, cfg):
    _, gpt, _, _, label = small
    tokens = gpt.generate(label, cfg=cfg, temperature=0)
    assert torch.equal(tokens, gpt.generate(label, cfg=cfg, temperature=0, use_cache=False))
    t = cfg * gpt.levels()[:, None] / (len(gpt.sides) - 1)
    null = gpt.logits(tokens, torch.full_like(label, gpt.n_classes))
    guided = (1 + t) * gpt.logits(tokens, label) - t * null
    assert torch.equal(tokens, guided.argmax(-1))
    assert len(tokens.unique()) > 3  # else it would prove little


def test_drawn_tokens_depend_on_the_generator_only(small):
    _, gpt, _, _, label = small
    knobs = {"cfg": 1.0, "top_k": 9, "top_p": 0.9, "temperature": 1.2}
    first, again, other = (
        gpt.generate(label, generator=torch.Generator().manual_seed(seed), use_cache=cache, **knobs)
        for seed, cache in ((1, True), (1, False), (2, True))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@torch.no_grad()
def test_the_cache_holds_every_scale_once(small):
    _, gpt, vae, images, label = small
    vectors, cache = vae.quantizer.inputs(vae.encode(images)), KVCache(gpt.n_tokens)
    rows = [gpt.scores(vectors[:, : end - gpt.starts[1]], label, cache) for end in gpt.starts[1:]]
    assert cache.n == gpt.n_tokens
    assert (torch.cat(rows, 1) - gpt.scores(vectors, label)).abs().max() < 2e-5


@torch.no_grad()
def test_rows_are_independent(small):
    _, gpt, vae, images, label = small
    order = torch.tensor([2, 0, 1])
    tokens = vae.encode(images)
    assert torch.equal(vae.encode(images[order]), tokens[order])
    assert (vae.decode(tokens[order]) - vae.decode(tokens)[order]).abs().max() < 1e-4
    assert (gpt.logits(tokens[order], label[order]) - gpt.logits(tokens, label)[order]).abs().max() < 2e-5
    drawn = gpt.generate(label, temperature=0)
    assert torch.equal(gpt.generate(label[order], temperature=0), drawn[order])
    assert torch.equal(gpt.generate(label[:1], temperature=0), drawn[:1])


@torch.no_grad()
def test_later_scales_are_not_seen(small):
    _, gpt, vae, images, label = small
    tokens = vae.encode(images)
    right = gpt.logits(tokens, label)
    for s in range(len(gpt.sides)):
        changed = tokens.clone()
        changed[:, gpt.starts[s] :] = (changed[:, gpt.starts[s] :] + 1) % gpt.vocab
        wrong = gpt.logits(changed, label)
        assert torch.equal(wrong[:, : gpt.starts[s + 1]], right[:, : gpt.starts[s + 1]])


@torch.no_grad()
def test_each_scale_stores_what_the_others_have_left(small):
    _, _, vae, images, _ = small
    quantizer, z = vae.quantizer, vae.encoder(images)
    tokens, codes = vae.encode(images), quantizer.embedding.weight
    sums = [torch.zeros_like(z), *quantizer.accumulate(tokens)]
    for s, (part, side) in enumerate(zip(tokens.split([n**2 for n in quantizer.sides], 1), quantizer.sides)):
        rows = F.adaptive_avg_pool2d(z - sums[s], side).flatten(2).mT
        assert torch.equal(torch.cdist(rows, codes).argmin(-1), part)
    assert torch.equal(vae.decode(tokens), vae.decoder(sums[-1]).clamp(-1, 1))
    assert torch.equal(vae.decode(tokens, (quantizer.sides[-1],) * 2), vae.decode(tokens))
    assert vae.decode(tokens).shape == images.shape


def test_gradients_reach_what_is_trained(small):
    _, gpt, vae, images, label = small
    vae(images).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    gpt(vae.encode(images), label).backward()
    assert {k for k, p in gpt.named_parameters() if p.grad is None} == {
        f"quantizer.{k}" for k, _ in gpt.quantizer.named_parameters()
    }
    vae.zero_grad()
    gpt.zero_grad()


def test_every_label_is_forgotten(gpt):
    null = torch.full_like(LABEL, 10)
    assert torch.equal(gpt(IDS, LABEL, p_drop=1.0), gpt(IDS, null, p_drop=0.0))
    assert not torch.equal(gpt(IDS, LABEL, p_drop=0.0), gpt(IDS, null, p_drop=0.0))


# Loading.

FULL = {  # name: (depth, sides, shared, entries, parameters, digest of the official names and shapes)
    "d16": (16, PIXELS_256, False, 220, 310_283_520, "7a3b357664abc73d"),
    "d20": (20, PIXELS_256, False, 272, 600_917_136, "374a8886d740e753"),
    "d24": (24, PIXELS_256, False, 324, 1_033_399_360, "744de1d4139a54dd"),
    "d30": (30, PIXELS_256, False, 402, 2_010_020_356, "eec8ec8b2825222a"),
    "d36": (36, PIXELS_512, True, 446, 2_353_893_904, "b3a85bf8848ba42f"),
}


def digest(shapes):
    text = "\n".join(f"{k} {shapes[k]}" for k in sorted(shapes))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def official_vae():
    return vae_shapes(160, z=32, vocab=4096) | {"quantize.ema_vocab_hit_SV": (10, 4096)}


def test_the_official_tokenizer_loads():
    vae = load_vae(empty(official_vae()), PIXELS_256)
    assert (len(official_vae()), digest(official_vae())) == (324, "1e1c4d6e7063dec0")
    assert n_params(vae) == 108_948_355 and vae.encoder.factor == 16 and vae.quantizer.n_tokens == 680


@pytest.mark.parametrize("name", FULL)
def test_official_sizes_load(name):
    depth, sides, shared, entries, parameters, told = FULL[name]
    shapes = gpt_shapes(64 * depth, depth, depth, sides, 32, 4096, 1000, shared)
    shapes |= buffers(shapes)
    assert (len(shapes), digest(shapes)) == (entries, told)
    model = load_transformer(empty(shapes), load_vae(empty(official_vae()), sides), depth)
    assert n_own(model) == parameters and model.grid == (sides[-1],) * 2


def test_loaded_is_ready(gpt, vae):
    for model in (gpt, vae):
        assert not model.training
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert gpt.quantizer is not vae.quantizer and all(p.requires_grad for p in vae.parameters())
    assert (gpt.n_layers, gpt.n_heads, gpt.n_classes, gpt.vocab, gpt.mlp_width) == (2, 2, 10, 32, 512)
    assert {m.eps for m in vae.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}  # too small for a probe


def test_half_precision_becomes_float32(state, gpt, vae):
    half = load_transformer({k: v.bfloat16() for k, v in state.items()}, vae, 2)
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert torch.equal(half.head.weight, gpt.head.weight.bfloat16().float())


def test_the_tables_may_be_there(state, gpt, vae):
    tables = {k: torch.zeros(s) for k, s in buffers(gpt_shapes()).items()}
    tables["lvl_1L"] = gpt.levels()[None]
    again = load_transformer(state | tables, vae, 2)
    assert torch.equal(again.logits(IDS, LABEL), gpt.logits(IDS, LABEL))


@pytest.mark.parametrize("place", ["model", "module", "state_dict"])
def test_nested_weights_load(state, vae, place):
    load_transformer({place: state, "steps": 3}, vae, 2)
    assert load_vae({place: empty(vae_shapes())}, SIDES).quantizer.sides == SIDES


def test_round_trip(gpt, vae, images, tmp_path):
    again = checkpoint.load(checkpoint.save(tmp_path / "vae.safetensors", vae))
    assert torch.equal(again.encode(images), IDS)
    again = checkpoint.load(checkpoint.save(tmp_path / "var.safetensors", gpt))
    assert torch.equal(again.logits(IDS, LABEL), gpt.logits(IDS, LABEL))
    assert not again.quantizer.embedding.weight.requires_grad
    assert checkpoint.spec(again) == checkpoint.spec(gpt)


def test_a_file_is_read(state, vae, tmp_path):
    torch.save(state, tmp_path / "var.pth")
    again = load_transformer(var.read(tmp_path / "var.pth"), vae, 2)
    assert torch.equal(again.head.weight, state["head.weight"])


VAE_FAULTS = [
    ("quantize.embedding.weight", None, "VAR tokenizer: misses 'quantize.embedding.weight': is it another model?"),
    ("encoder.conv_in.weight", (40, 3, 3, 3), "'encoder.conv_in.weight' gives 40 channels, expected a multiple of 32"),
    ("quant_conv.weight", None, "misses 'quant_conv.weight'"),
    ("post_quant_conv.bias", (4,), "'post_quant_conv.bias' is (4,), expected (8,) by the other shapes"),
    (
        "encoder.mid.attn_1.qkv.weight",
        (128, 128, 1, 1),
        "'encoder.mid.attn_1.qkv.weight' is (128, 128, 1, 1), expected",
    ),
    ("encoder.down.2.block.0.conv1.weight", None, "misses 'encoder.down.2.block.0.conv1.weight'"),
    ("decoder.up.4.attn.2.norm.bias", None, "misses 'decoder.up.4.attn.2.norm.bias'"),
    ("decoder.up.0.upsample.conv.bias", (32,), "holds 'decoder.up.0.upsample.conv.bias', which has no place in it"),
    ("quantize.quant_resi.qresi_ls.3.bias", None, "misses 'quantize.quant_resi.qresi_ls.3.bias'"),
    (
        "quantize.quant_resi.qresi_ls.1.weight",
        (8, 8, 1, 1),
        "qresi_ls.1.weight' is (8, 8, 1, 1), expected (8, 8, 3, 3)",
    ),
]
GPT_FAULTS = [
    ("class_emb.weight", None, "VAR: misses 'class_emb.weight': is it another model?"),
    ("head.weight", (40, 128), "VAR: 'head.weight' is for 40 codes, the vae has 32"),
    ("head.bias", (40,), "'head.bias' is (40,), expected (32,) by the other shapes"),
    ("word_embed.weight", (128, 16), "VAR: 'word_embed.weight' is for 16 channels, the vae has 8"),
    ("pos_1LC", (1, 14, 128), "VAR: 'pos_1LC' has 14 rows, expected 30 for the vae's sides (1, 2, 3, 4)"),
    ("pos_start", (1, 4, 128), "VAR: 'pos_start' has 4 rows, expected 1 for the vae's sides (1, 2, 3, 4)"),
    ("pos_start", (1, 128), "VAR: 'pos_start' is (1, 128), expected 3 dimensions"),
    ("lvl_embed.weight", (5, 128), "VAR: 'lvl_embed.weight' has 5 rows, expected 4 for the vae's sides (1, 2, 3, 4)"),
    ("blocks.0.attn.scale_mul_1H11", (1, 4, 1, 1), "'blocks.0.attn.scale_mul_1H11' is for 4 heads, got n_heads=2"),
    ("blocks.1.attn.scale_mul_1H11", None, "misses 'blocks.1.attn.scale_mul_1H11'"),
    ("blocks.0.attn.scale_mul_1H11", None, "holds 'blocks.1.attn.scale_mul_1H11', which has no place in it"),
    ("blocks.1.attn.k_bias", (128,), "holds 'blocks.1.attn.k_bias', which has no place in it"),
    ("blocks.1.ada_lin.1.weight", (384, 128), "'blocks.1.ada_lin.1.weight' is (384, 128), expected (768, 128)"),
    ("blocks.7.ffn.fc1.weight", (512, 128), "misses 'blocks.2.attn"),
    ("shared_ada_lin.1.weight", (768, 128), "misses 'shared_ada_lin.1.bias'"),
    ("quantizer.embedding.weight", (32, 8), "holds 'quantizer.embedding.weight', which has no place in it"),
]


@pytest.mark.parametrize("key, shape, message", VAE_FAULTS + GPT_FAULTS)
def test_faults_are_named(vae, key, shape, message):
    of_vae = (key, shape, message) in VAE_FAULTS
    shapes = {k: s for k, s in (vae_shapes() if of_vae else gpt_shapes()).items() if k != key}
    faulty = empty(shapes | ({key: shape} if shape else {}))
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load_vae(faulty, SIDES) if of_vae else load_transformer(faulty, vae, 2)
    assert "\n" not in str(caught.value)


def test_sides_of_as_many_tokens_are_told_apart(state, vae):
    """What the shapes hide, the table in the file tells."""
    levels = torch.cat([torch.full((n,), s) for s, n in enumerate((1, 9, 4, 16))])[None]
    with pytest.raises(
        CheckpointError, match=r"'lvl_1L' has scales of \[1, 9, 4, 16\] slots, expected \[1, 4, 9, 16\]"
    ):
        load_transformer(state | {"lvl_1L": levels}, vae, 2)


@pytest.mark.parametrize("sides", [(), (4,), (1, 2, 2), (4, 2), (0, 1), (1, 2.5), 4])
def test_odd_sides_are_refused(sides):
    with pytest.raises(
        ValueError, match="sides must be two or more whole numbers, each larger than the one before, got"
    ):
        load_vae(empty(vae_shapes()), sides)


@pytest.mark.parametrize("n_heads", [0, 3])
def test_heads_must_split_the_width(vae, n_heads):
    with pytest.raises(ValueError, match=f"width 128 must split into {n_heads} heads"):
        load_transformer(empty(gpt_shapes(l2_norm=False)), vae, n_heads)
    with pytest.raises(CheckpointError, match=f"is for 2 heads, got n_heads={n_heads}"):
        load_transformer(empty(gpt_shapes()), vae, n_heads)


def test_another_tokenizer_is_refused(state):
    plain = VQVAE(Encoder(3, 8, 16), Decoder(3, 8, 16), VectorQuantizer(32, 8))
    with pytest.raises(TypeError, match="vae must come from load_vae, got a VQVAE with a VectorQuantizer"):
        load_transformer(state, plain, 2)


def test_each_loader_refuses_the_other_model(state, vae):
    with pytest.raises(CheckpointError, match=r"VAR tokenizer: misses 'quantize.embedding.weight'"):
        load_vae(state, SIDES)
    with pytest.raises(CheckpointError, match="VAR: misses 'pos_start'"):
        load_transformer(empty(vae_shapes()), vae, 2)
    with pytest.raises(CheckpointError, match="expected a dict of tensors, got a list"):
        load_transformer([state], vae, 2)


CALLS = [
    (lambda gpt, vae: vae.encode(torch.zeros(1, 3, 32, 32)), r"the last side is 4, got a map of \(2, 2\)"),
    (lambda gpt, vae: vae.encode(torch.zeros(1, 3, 64, 80)), r"the last side is 4, got a map of \(4, 5\)"),
    (lambda gpt, vae: vae.encode(torch.full((1, 3, 64, 64), 255.0)), r"images must lie in \[-1, 1\]"),
    (lambda gpt, vae: vae.decode(IDS[:, :16]), r"sides \(1, 2, 3, 4\) have 30 tokens, got 16 per row"),
    (lambda gpt, vae: vae.decode(IDS + 32), r"tokens must lie in 0..31"),
    (lambda gpt, vae: vae.decode(IDS, (5, 6)), r"the last side is 4, got size \(5, 6\): leave it out"),
    (lambda gpt, vae: gpt.logits(IDS[:1], LABEL), r"tokens must be \(2, 30\) for these labels, got \(1, 30\)"),
    (lambda gpt, vae: gpt.logits(IDS, LABEL + 8), "label must lie in 0..10, got values from 11 to 18"),
    (lambda gpt, vae: gpt.generate(LABEL + 8), "label must lie in 0..10, got values from 11 to 18"),
    (lambda gpt, vae: gpt.generate(LABEL, cfg=-1), "cfg must be a number in"),
    (lambda gpt, vae: gpt.generate(LABEL, top_k=33), "top_k must be a number in"),
    (lambda gpt, vae: gpt.generate(LABEL, temperature=-1), "temperature must be a number in"),
]


@pytest.mark.parametrize("call, message", CALLS, ids=[message for _, message in CALLS])
def test_wrong_calls_are_named(gpt, vae, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(gpt, vae)
    assert "\n" not in str(caught.value)
