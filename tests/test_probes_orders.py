"""The ports of ARPG, RAR and MaskGIT's tokenizer compute what the official classes do, and name what is wrong."""

import hashlib
import math
import re
from itertools import pairwise

import probes
import pytest
import torch
import torch.nn.functional as F
from probes import OFFICIAL, differs

from minar import GPT, KVCache, Plan, Transformer
from minar.lab import checkpoint
from minar.lab.checkpoint import CheckpointError
from minar.plan import arccos_sizes, cosine_sizes, random_order, raster
from minar.ports import arpg, maskgit_vq, rar
from minar.transformer import rope_2d

# The official names and shapes.


def arpg_shapes(width=64, m=2, mlp=192, vocab=48, n_classes=10):
    shapes = {
        "embeddings.weight": (vocab + n_classes + 3, width),
        "layers.norm.weight": (width,),
        "layers.to_k.weight": (width, width),
        "layers.to_v.weight": (width, width),
        "norm.weight": (width,),
        "head.weight": (vocab, width),
    }
    rest = {"ffn.w1": (mlp, width), "ffn.w3": (mlp, width), "ffn.w2": (width, mlp)}
    rest |= {"attn_norm": (width,), "ffn_norm": (width,)}
    for half, names in {"self_dec": ("to_q", "to_k", "to_v", "proj"), "cross_dec": ("to_q", "proj")}.items():
        layer = {f"attn.{name}": (width, width) for name in names} | rest
        shapes |= {f"layers.{half}.{i}.{name}.weight": s for i in range(m) for name, s in layer.items()}
    return shapes


def rar_shapes(width=64, n_layers=2, n_heads=4, mlp=256, vocab=48, n_classes=10, n_tokens=16):
    linear = {"lm_head": (vocab, width), "adaln_before_head.adaLN_modulation.1": (2 * width, width)}
    block = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (mlp, width)}
    block |= {"mlp.fc2": (width, mlp), "adaLN_modulation.1": (6 * width, width), "norm1": (width,), "norm2": (width,)}
    block |= {"attn.q_norm": (width // n_heads,), "attn.k_norm": (width // n_heads,)}
    linear |= {f"blocks.{i}.{name}": s for i in range(n_layers) for name, s in block.items()}
    shapes = {f"{name}.weight": s for name, s in linear.items()} | {f"{name}.bias": s[:1] for name, s in linear.items()}
    return shapes | {
        "embeddings.weight": (vocab + n_classes + 2, width),
        "cls_token": (1, 1, width),
        "pos_embed": (1, n_tokens + 1024, width),
        "target_aware_pos_embed": (1, n_tokens + 1024, width),
        "timesteps_embeddings": (1, n_tokens + 100, width),
    }


def vq_shapes(width=32, widths=(32, 32, 64), n_blocks=2, dim=16, vocab=64):
    low, high = widths[-1], widths[0]
    shapes = {
        "quantize.embedding.weight": (vocab, dim),
        "encoder.conv_in.weight": (width, 3, 3, 3),
        "encoder.conv_out.weight": (dim, low, 1, 1),
        "decoder.conv_in.weight": (low, dim, 3, 3),
        "decoder.conv_out.weight": (3, high, 3, 3),
    }
    shapes |= {"encoder.conv_out.bias": (dim,), "decoder.conv_in.bias": (low,), "decoder.conv_out.bias": (3,)}
    shapes |= {f"encoder.norm_out.{x}": (low,) for x in ("weight", "bias")}
    shapes |= {f"decoder.norm_out.{x}": (high,) for x in ("weight", "bias")}
    for side in ("encoder", "decoder"):
        shapes |= vq_blocks(f"{side}.mid", [low] * (n_blocks + 1))
    for i, (a, b) in enumerate(pairwise([width, *widths])):
        shapes |= vq_blocks(f"encoder.down.{i}.block", [a] + [b] * n_blocks)
    for i, (b, a) in enumerate(pairwise([*widths, low])):
        shapes |= vq_blocks(f"decoder.up.{i}.block", [a] + [b] * n_blocks)
        if i:
            name = f"decoder.up.{i}.upsample_conv"
            shapes |= {f"{name}.weight": (b, b, 3, 3), f"{name}.bias": (b,)}
    return shapes


def vq_blocks(name, widths):
    shapes = {}
    for i, (a, b) in enumerate(pairwise(widths)):
        shapes |= {f"{name}.{i}.norm1.{x}": (a,) for x in ("weight", "bias")}
        shapes |= {f"{name}.{i}.norm2.{x}": (b,) for x in ("weight", "bias")}
        shapes |= {f"{name}.{i}.conv1.weight": (b, a, 3, 3), f"{name}.{i}.conv2.weight": (b, b, 3, 3)}
        shapes |= {f"{name}.{i}.nin_shortcut.weight": (b, b, 1, 1)} if a != b else {}
    return shapes


# The same computations once more, written from the formulas: nothing of the package is in them.


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def attention(q, k, v, sees):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (scores.masked_fill(~sees, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)


def turn(x, place, grid_width):
    """(B, H, T, hd) at (B, T) places, as complex numbers; a place of -1 makes zeros."""
    quarter = x.shape[-1] // 4
    speed = 10000.0 ** (-torch.arange(quarter) / quarter)
    angle = torch.cat([(place // grid_width)[..., None] * speed, (place % grid_width)[..., None] * speed], -1)
    factor = torch.polar((place >= 0)[..., None].float().expand_as(angle), angle)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * factor[:, None]).flatten(
        -2
    )


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def arpg_again(state, tokens, label, order, n_heads, grid_width):
    """Teacher-forced logits, (B, N, V), one token a step; tokens by position, order (B, N)."""
    vocab, table = len(state["head.weight"]), state["embeddings.weight"]
    read = torch.cat([vocab + 1 + label[:, None], tokens.gather(1, order)[:, :-1]], 1)
    own = torch.cat([torch.full_like(label[:, None], -1), order[:, :-1]], 1)
    x, q = table[read], table[vocab].expand(*read.shape, -1)
    sees = torch.ones(order.shape[1], order.shape[1], dtype=torch.bool).tril()

    def feed(x, name):
        y = rms(x, state[f"{name}.ffn_norm.weight"])
        gate, up = (y @ state[f"{name}.ffn.{w}.weight"].T for w in ("w1", "w3"))
        return x + (gate * gate.sigmoid() * up) @ state[f"{name}.ffn.w2.weight"].T

    m = sum(key.startswith("layers.self_dec") and key.endswith("ffn_norm.weight") for key in state)
    for name in (f"layers.self_dec.{i}" for i in range(m)):
        y = rms(x, state[f"{name}.attn_norm.weight"])
        a, b, c = (heads(y @ state[f"{name}.attn.to_{part}.weight"].T, n_heads) for part in "qkv")
        y = attention(turn(a, own, grid_width), turn(b, own, grid_width), c, sees)
        x = feed(x + y @ state[f"{name}.attn.proj.weight"].T, name)
    y = rms(x, state["layers.norm.weight"])
    k = turn(heads(y @ state["layers.to_k.weight"].T, n_heads), own, grid_width)
    v = heads(y @ state["layers.to_v.weight"].T, n_heads)
    for name in (f"layers.cross_dec.{i}" for i in range(m)):
        a = heads(rms(q, state[f"{name}.attn_norm.weight"]) @ state[f"{name}.attn.to_q.weight"].T, n_heads)
        y = attention(turn(a, order, grid_width), k, v, sees)
        q = feed(q + y @ state[f"{name}.attn.proj.weight"].T, name)
    return rms(q, state["norm.weight"]) @ state["head.weight"].T


def standardize(x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rar_again(state, tokens, label, order, n_heads):
    """Teacher-forced logits, (B, N, V); tokens by position, order (B, N)."""
    vocab, n = len(state["lm_head.weight"]), order.shape[1]
    label = state["embeddings.weight"][vocab + 1 + label][:, None]
    x = [state["cls_token"][0, 0] + state["pos_embed"][0, 0] + torch.zeros_like(label[:, 0])]
    entries = torch.cat([label, state["embeddings.weight"][tokens.gather(1, order)]], 1)
    for i in range(n):  # entry i + 1 stands on the token before and predicts the token i
        own = state["pos_embed"][0, 1] if i == 0 else state["pos_embed"][0, 2 + order[:, i - 1]]
        x.append(entries[:, i] + own + state["target_aware_pos_embed"][0, 2 + order[:, i]])
    x = torch.stack(x, 1)
    c = label + state["timesteps_embeddings"][:, : n + 1]
    c = c * c.sigmoid()
    sees = torch.ones(n + 1, n + 1, dtype=torch.bool).tril()

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return standardize(x) * state[f"{name}.weight"] + state[f"{name}.bias"]

    for name in sorted({".".join(key.split(".")[:2]) for key in state if key.startswith("blocks.")}):
        m = linear(c, f"{name}.adaLN_modulation.1").unflatten(-1, (6, -1)).unbind(-2)
        q, k, v = linear(norm(x, f"{name}.norm1") * (1 + m[1]) + m[0], f"{name}.attn.qkv").chunk(3, -1)
        q, k = norm(heads(q, n_heads), f"{name}.attn.q_norm"), norm(heads(k, n_heads), f"{name}.attn.k_norm")
        x = x + m[2] * linear(attention(q, k, heads(v, n_heads), sees), f"{name}.attn.proj")
        y = linear(norm(x, f"{name}.norm2") * (1 + m[4]) + m[3], f"{name}.mlp.fc1")
        x = x + m[5] * linear(y * (1 + torch.erf(y / math.sqrt(2))) / 2, f"{name}.mlp.fc2")
    scale, shift = linear(c, "adaln_before_head.adaLN_modulation.1").chunk(2, -1)
    return linear(standardize(x) * (1 + scale) + shift, "lm_head")[:, 1:]


class VQAgain:
    """The encoder and the decoder, both in [0, 1]."""

    def __init__(self, state, n_levels, n_blocks):
        self.state, self.n_levels, self.n_blocks = state, n_levels, n_blocks

    def conv(self, x, name):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def active(self, x, name):
        x = F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)
        return x * x.sigmoid()

    def blocks(self, x, name):
        for i in range(self.n_blocks):
            at = f"{name}.{i}"
            y = self.conv(self.active(x, f"{at}.norm1"), f"{at}.conv1")
            y = self.conv(self.active(y, f"{at}.norm2"), f"{at}.conv2")
            x = y + (self.conv(y, f"{at}.nin_shortcut") if f"{at}.nin_shortcut.weight" in self.state else x)
        return x

    def encode(self, x):
        x = self.conv(x, "encoder.conv_in")
        for i in range(self.n_levels):
            x = self.blocks(x, f"encoder.down.{i}.block")
            if i < self.n_levels - 1:
                x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return self.conv(self.active(self.blocks(x, "encoder.mid"), "encoder.norm_out"), "encoder.conv_out")

    def decode(self, z):
        x = self.blocks(self.conv(z, "decoder.conv_in"), "decoder.mid")
        for i in reversed(range(self.n_levels)):
            x = self.blocks(x, f"decoder.up.{i}.block")
            if i:
                x = self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"decoder.up.{i}.upsample_conv")
        return self.conv(self.active(x, "decoder.norm_out"), "decoder.conv_out")


# The probes. Each takes nothing, so that a planted bug can be tried on it.

ARPG, RAR, VQ = OFFICIAL["arpg"], OFFICIAL["rar"], OFFICIAL["maskgit_vq"]
TOKENS, LABEL = torch.tensor(ARPG["tokens"]), torch.tensor(ARPG["labels"])
ORDERS = Plan(torch.tensor(ARPG["orders"]), (1,) * 16)


def n_params(model):
    return sum(p.numel() for p in model.parameters())


def tiny_arpg():
    return arpg.load(probes.fill(arpg_shapes()), n_heads=4, grid=(4, 4))


def tiny_rar():
    return rar.load(probes.fill(rar_shapes()), n_heads=4, grid=(4, 4))


def tiny_vq():
    return maskgit_vq.load(probes.fill(vq_shapes()))


@torch.no_grad()
def probe_arpg():
    model = tiny_arpg()
    logits = model.logits(TOKENS, LABEL, ORDERS)
    assert n_params(model) == ARPG["n_params"]
    assert model.class_row(LABEL)[:, 0].tolist() == ARPG["cond_ids"]
    assert differs(logits, ARPG["logits"]) < 2e-5
    assert logits[0].argmax(-1).tolist() == ARPG["argmax0"]
    assert abs(float(model(TOKENS, LABEL, ORDERS, p_drop=0)) - ARPG["loss"]) < 2e-5


@torch.no_grad()
def probe_rar():
    model = tiny_rar()
    assert n_params(model) == RAR["n_params"]
    assert model.class_row(LABEL)[:, 0].tolist() == RAR["cond_ids"]
    assert int(model.class_row(torch.tensor([model.n_classes]))) == RAR["none_id"]
    for name, plan in {"raster": raster(4, 4), "perm": ORDERS}.items():
        logits = model.head.logits(model.states(plan.permute(TOKENS), LABEL, plan))
        assert differs(logits, RAR[f"{name}_logits"]) < 2e-5
        assert torch.equal(model.logits(TOKENS, LABEL, plan), logits[:, :-1])
        assert abs(float(model(TOKENS, LABEL, plan, p_drop=0)) - RAR[f"{name}_loss"]) < 2e-5
    assert model.logits(TOKENS, LABEL, raster(4, 4))[0].argmax(-1).tolist() == RAR["argmax0_raster"]


@torch.no_grad()
def probe_vq():
    model, images = tiny_vq(), probes.image(2, 16, 16)
    quantized = model.quantizer(z := model.encoder(images))
    painted = model.decoder(quantized.z)
    assert n_params(model) == VQ["n_params"] and len(vq_shapes()) == VQ["n_tensors"]
    assert differs(z, VQ["enc"]) < 1e-3
    assert quantized.tokens[0].tolist() == VQ["idx0"]
    assert torch.equal(model.encode(images), quantized.tokens)
    assert abs(float(quantized.loss) - VQ["loss"]) < 2e-5
    assert differs((painted + 1) / 2, VQ["rec"]) < 1e-3
    assert torch.allclose(model.decode(quantized.tokens), painted.clamp(-1, 1), atol=1e-4)


PLANS = {
    "raster": raster(4, 4),
    "random per row": ORDERS,
    "sets": Plan(ORDERS.pos[0], (1, 2, 5, 8)),
    "sets per row": Plan(ORDERS.pos, (3, 5, 1, 7)),
}


@torch.no_grad()
def decode(model, plan, cache):
    """Hidden states step by step, (B, N, D)."""
    known = plan.permute(TOKENS)
    return torch.cat([model.hidden(known, LABEL, plan, s, s + 1, cache) for s in range(plan.n_steps)], 1)


def cache_arpg():
    for plan in PLANS.values():
        check_cache(tiny_arpg(), plan)


def cache_rar():
    for plan in (raster(4, 4), ORDERS):
        check_cache(tiny_rar(), plan)


def check_cache(model, plan):
    with torch.no_grad():
        whole = model.hidden(plan.permute(TOKENS), LABEL, plan)
    assert (decode(model, plan, None) - whole).abs().max() < 2e-5
    assert (decode(model, plan, KVCache(17)) - whole).abs().max() < 2e-5


@pytest.mark.parametrize("check", [probe_arpg, probe_rar, probe_vq, cache_arpg, cache_rar])
def test_official(check):
    check()


@pytest.mark.parametrize("name", OFFICIAL["arpg_schedules"])
def test_schedules(name):
    rule, n_steps = name.split("-")
    sizes = {"cosine": cosine_sizes, "arccos": arccos_sizes}[rule](256, int(n_steps))
    assert list(sizes) == OFFICIAL["arpg_schedules"][name]


# Planted bugs: each is caught by one of the checks above. The test ids are the table.


def identity_for_the_class(place, *args):
    angles = rope_2d(place, *args)
    angles[place < 0] = torch.tensor([1.0, 0.0])
    return angles


def queries_see_their_own_step(plan, past, end, asked):
    reads, asks = right_masks(plan, past, end, asked)
    return reads, asks | (plan.step[asked, None] >= torch.cat([plan.step.new_full((1,), -1), plan.step[:end]]))


def tokens_stand_where_they_are_going(plan, past, end, asked):
    own, target = right_places(plan, past, end, asked)
    return plan.pos[..., past : past + own.shape[-1]], target


def into_the_last_reading_layer(self, layer, k, v):
    return right_put(self, min(layer, 1), k, v)


def shift_before_scale(self, x, c):
    shift, scale = self.adaLN_modulation(c).chunk(2, -1)
    return rar.modulate(self.norm_final(x), shift, scale)


def own_place_as_target(self, plan, end):
    place = F.pad(plan.pos + 2, (2, 0))[..., :end]
    place[..., 1] = 1
    return self.pos_embed[0, place] + self.target_aware_pos_embed[0, place]


def the_place_of_the_first(self, plan, end):
    return right_positions(self, Plan(plan.pos if plan.pos.dim() == 1 else plan.pos[0], plan.sizes), end)


def gelu_by_tanh(x):
    return right_gelu(x, approximate="tanh")


def every_step_is_the_first(self, x, c, cache, layer):
    return right_block(self, x, c[:, :1].expand_as(c), cache, layer)


def shortcut_of_the_input(self, x, y):
    if not hasattr(self, "nin_shortcut"):
        return x
    return self.nin_shortcut(x[:, torch.arange(y.shape[1]) % x.shape[1]])


def images_stay_as_they_are(self, images):
    return right_encoder(self, 2 * images - 1)


right_masks, right_places, right_put, right_gelu = arpg.masks, arpg.places, KVCache.put, F.gelu
right_positions, right_block, right_encoder = rar.RAR.positions, rar.Block.forward, maskgit_vq.MaskGITEncoder.forward

BUGS = {  # what is patched, with what, and what must notice
    "ARPG: the class token is turned by the identity": (arpg, "rope_2d", identity_for_the_class, probe_arpg),
    "ARPG: queries see the token they ask for": (arpg, "masks", queries_see_their_own_step, probe_arpg),
    "ARPG: known tokens stand where the next one goes": (arpg, "places", tokens_stand_where_they_are_going, probe_arpg),
    "ARPG: the shared pair has no layer of its own": (KVCache, "put", into_the_last_reading_layer, cache_arpg),
    "RAR: shift before scale in the last norm": (rar.LastNorm, "forward", shift_before_scale, probe_rar),
    "RAR: the target is the token's own place": (rar.RAR, "positions", own_place_as_target, probe_rar),
    "RAR: all rows have the first row's order": (rar.RAR, "positions", the_place_of_the_first, probe_rar),
    "RAR: gelu by its tanh formula": (F, "gelu", gelu_by_tanh, probe_rar),
    "RAR: every place is modulated as the first": (rar.Block, "forward", every_step_is_the_first, probe_rar),
    "RAR: a new slot is modulated as the first": (rar.Block, "forward", every_step_is_the_first, cache_rar),
    "VQ: the shortcut reads the input": (maskgit_vq.ResBlock, "shortcut", shortcut_of_the_input, probe_vq),
    "VQ: every other pixel instead of the average": (maskgit_vq, "halve", lambda x: x[..., ::2, ::2], probe_vq),
    "VQ: images in -1..1": (maskgit_vq.MaskGITEncoder, "forward", images_stay_as_they_are, probe_vq),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_caught(bug, monkeypatch):
    where, name, wrong, check = BUGS[bug]
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(AssertionError):
        check()


# Other sizes, against the computations above.


def some(n, grid, vocab):
    """Tokens, labels of which the first is the null class, and an order for each row."""
    generator = torch.Generator().manual_seed(n)
    return probes.tokens(2, n, vocab), torch.tensor([3, 1]), random_order(*grid, 2, generator)


ARPG_SIZES = {
    "3x4 tokens": ((32, 1, 40, 20, 3), 2, (3, 4)),
    "heads of 12": ((48, 3, 64, 11, 3), 4, (5, 2)),
}
RAR_SIZES = {
    "3x4 tokens": ((32, 1, 2, 40, 20, 3, 12), 2, (3, 4)),
    "heads of 5": ((15, 3, 3, 64, 11, 3, 10), 3, (5, 2)),
}
VQ_SIZES = {
    "one level": (64, (32,), 1, 5, 7),
    "four levels": (32, (64, 32, 32, 96), 3, 8, 33),
}


@pytest.mark.parametrize("name", ARPG_SIZES)
@torch.no_grad()
def test_arpg_of_any_size(name):
    sizes, n_heads, grid = ARPG_SIZES[name]
    state = probes.fill(arpg_shapes(*sizes))
    model, (tokens, label, plan) = arpg.load(state, n_heads, grid), some(math.prod(grid), grid, sizes[3])
    assert model.n_classes == sizes[4]
    expected = arpg_again(state, tokens, label, plan.pos, n_heads, grid[1])
    assert (model.logits(tokens, label, plan) - expected).abs().max() < 2e-5
    expected = F.cross_entropy(expected.transpose(1, 2), plan.permute(tokens))
    assert abs(float(model(tokens, label, plan, p_drop=0) - expected)) < 2e-5


@pytest.mark.parametrize("name", RAR_SIZES)
@torch.no_grad()
def test_rar_of_any_size(name):
    sizes, n_heads, grid = RAR_SIZES[name]
    state = probes.fill(rar_shapes(*sizes))
    model, (tokens, label, plan) = rar.load(state, n_heads, grid), some(math.prod(grid), grid, sizes[4])
    assert model.n_classes == sizes[5]
    expected = rar_again(state, tokens, label, plan.pos, n_heads)
    assert (model.logits(tokens, label, plan) - expected).abs().max() < 2e-5
    expected = F.cross_entropy(expected.transpose(1, 2), plan.permute(tokens))
    assert abs(float(model(tokens, label, plan, p_drop=0) - expected)) < 2e-5


@pytest.mark.parametrize("name", VQ_SIZES)
@torch.no_grad()
def test_vq_of_any_size(name):
    sizes = VQ_SIZES[name]
    state = probes.fill(vq_shapes(*sizes))
    model, again = maskgit_vq.load(state), VQAgain(state, len(sizes[1]), sizes[2])
    side = 3 * model.encoder.factor
    images = probes.image(2, side, side)
    z = again.encode((images + 1) / 2)
    assert (model.encoder(images) - z).abs().max() < 1e-4
    codes = state["quantize.embedding.weight"]
    tokens = torch.cdist(z.flatten(2).mT, codes.expand(2, -1, -1)).argmin(-1)
    assert torch.equal(model.encode(images), tokens)
    painted = again.decode(codes[tokens].mT.unflatten(2, (3, 3)))
    assert (model.decode(tokens) - (2 * painted - 1).clamp(-1, 1)).abs().max() < 1e-3


# Decoding.


@torch.no_grad()
def drawn_again(logits, label, n_classes, order, scale):
    """Greedy decoding with guidance, from teacher-forced logits alone."""
    tokens = torch.zeros_like(order)
    for s in range(order.shape[1]):
        guided, null = (logits(tokens, one)[:, s] for one in (label, torch.full_like(label, n_classes)))
        tokens.scatter_(1, order[:, s, None], (null + scale(s) * (guided - null)).argmax(-1, keepdim=True))
    return tokens


@pytest.mark.parametrize("use_cache", [False, True])
def test_arpg_draws_what_the_formulas_say(use_cache):
    state, model, order = probes.fill(arpg_shapes()), tiny_arpg(), ORDERS.pos
    logits = lambda tokens, label: arpg_again(state, tokens, label, order, 4, 4)  # noqa: E731
    expected = drawn_again(logits, LABEL, 10, order, lambda s: 1 + 3 * (s + 1) / 16)
    drawn = model.generate(LABEL, (1,) * 16, arpg.linear(4.0), order, use_cache, temperature=0)
    assert torch.equal(drawn, expected) and drawn.unique().numel() > 3


@pytest.mark.parametrize("use_cache", [False, True])
def test_rar_draws_what_the_formulas_say(use_cache):
    state, model, order = probes.fill(rar_shapes()), tiny_rar(), torch.arange(16).expand(2, -1)
    logits = lambda tokens, label: rar_again(state, tokens, label, order, 4)  # noqa: E731
    scale = lambda s: 1 + 4 * (1 - math.cos(math.pi * (s / 16) ** 1.5)) / 2  # noqa: E731
    drawn = model.generate(LABEL, rar.power_cosine(5, 1.5), use_cache, temperature=0)
    assert torch.equal(drawn, drawn_again(logits, LABEL, 10, order, scale)) and drawn.unique().numel() > 3


def draw_arpg(seed, **knobs):
    return tiny_arpg().generate(LABEL, (1, 2, 4, 9), generator=torch.Generator().manual_seed(seed), **knobs)


def draw_rar(seed, **knobs):
    return tiny_rar().generate(LABEL, generator=torch.Generator().manual_seed(seed), **knobs)


@pytest.mark.parametrize("draw", [draw_arpg, draw_rar])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_draws(draw, cfg):
    drawn = draw(0, cfg=cfg, temperature=0.9)
    assert drawn.shape == (2, 16) and drawn.min() >= 0 and drawn.max() < 48
    assert torch.equal(draw(0, cfg=cfg, temperature=0.9, use_cache=False), drawn)
    assert not torch.equal(draw(1, cfg=cfg, temperature=0.9), drawn)
    assert torch.equal(draw(0, cfg=1.0), draw(0, cfg=lambda plan, s: 1.0))
    same = torch.equal(draw(0, cfg=cfg, temperature=0), draw(1, cfg=cfg, temperature=0))
    assert same == (draw is draw_rar)  # the one thing left to chance is ARPG's order


@pytest.mark.parametrize("plan", ["sets", "sets per row"])
@torch.no_grad()
def test_arpg_asks_for_many_as_for_one(plan):
    """A query knows nothing of the other queries: what a step draws does not depend on what else it draws."""
    model, plan = tiny_arpg(), PLANS[plan]
    together = model.hidden(plan.permute(TOKENS), LABEL, plan)
    for s in range(plan.n_steps):
        cut = plan.starts[s] + 1
        sizes = (*plan.sizes[:s], 1, *([16 - cut] if cut < 16 else []))
        alone = model.hidden(plan.permute(TOKENS), LABEL, Plan(plan.pos, sizes), s, s + 1)
        assert (alone[:, 0] - together[:, plan.starts[s]]).abs().max() < 2e-5


@pytest.mark.parametrize("make, plans", [(tiny_arpg, PLANS), (tiny_rar, ("raster", "random per row"))])
@torch.no_grad()
def test_nobody_peeks(make, plans):
    model = make()
    for plan in (PLANS[name] for name in plans):
        right = model.logits(TOKENS, LABEL, plan)
        for slot in (0, 7, 15):
            other = plan.permute(TOKENS)
            other[:, slot] = (other[:, slot] + 1) % 48
            moved = (model.logits(plan.unpermute(other), LABEL, plan) - right).abs().amax((0, 2))
            later = plan.starts[int(plan.step[slot]) + 1]
            assert moved[:later].max() < 1e-6
            assert later == 16 or moved[later:].min() > 1e-4


def test_arpg_caches_little_more_than_half():
    """(m + 1) / 2m of what a GPT of as many layers keeps for the same slots."""
    m, caches = 2, {"arpg": KVCache(16), "gpt": KVCache(16)}
    decode(tiny_arpg(), raster(4, 4), caches["arpg"])
    gpt = GPT(Transformer(64, 2 * m, 4, 192), 48, 10, (4, 4))
    gpt.logits(TOKENS[:, :-1], LABEL, caches["gpt"])
    assert caches["arpg"].n == caches["gpt"].n == 16
    assert caches["arpg"].bytes * 2 * m == caches["gpt"].bytes * (m + 1)


@pytest.mark.parametrize("sizes, room", [((1,) * 16, 16), ((1, 2, 4, 9), 8), ((16,), 1)])
def test_arpg_takes_no_more_memory_than_it_fills(sizes, room, monkeypatch):
    made = []
    monkeypatch.setattr(arpg, "KVCache", lambda n: made.append(KVCache(n)) or made[0])
    tiny_arpg().generate(LABEL, sizes)
    assert made[0].n == made[0].max_len == room
    assert made[0].bytes == 3 * 2 * 2 * room * 64 * 4  # m + 1 layers, keys and values, 2 rows, 64 float32 each


def test_scales():
    plan = Plan(torch.arange(16), (1, 2, 4, 9))
    assert [arpg.linear(5.0)(plan, s) for s in range(4)] == [1.25, 1.75, 2.75, 5.0]
    told = {(16, 2.75): (1, 1.018, 1.803, 7.404, 15.996), (6.9, 1.5): (1, 1.225, 2.640, 5.285, 6.900)}
    for (cfg, power), values in told.items():
        found = [rar.power_cosine(cfg, power)(raster(16, 16), s) for s in (0, 64, 128, 192, 255)]
        assert found == pytest.approx(values, abs=6e-4)


def test_labels_are_forgotten():
    for model in (tiny_arpg(), tiny_rar()):
        null = torch.full_like(LABEL, 10)
        with torch.no_grad():
            assert torch.equal(model(TOKENS, LABEL, ORDERS, p_drop=1), model(TOKENS, null, ORDERS, p_drop=0))


# What is loaded, and what is refused.

LOAD = {
    "arpg": (lambda state, n_heads=4, grid=(4, 4): arpg.load(state, n_heads, grid), arpg_shapes),
    "rar": (lambda state, n_heads=4, grid=(4, 4): rar.load(state, n_heads, grid), rar_shapes),
    "vq": (maskgit_vq.load, vq_shapes),
}


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


FULL = {  # name: (port, further arguments, shapes, parameters)
    "ARPG-L": ("arpg", (16, (16, 16)), arpg_shapes(1024, 12, 2816, 16384, 1000), 319_845_376),
    "ARPG-XL": ("arpg", (20, (16, 16)), arpg_shapes(1280, 18, 3584, 16384, 1000), 718_997_760),
    "ARPG-XXL": ("arpg", (24, (16, 16)), arpg_shapes(1536, 24, 4096, 16384, 1000), 1_302_449_664),
    "RAR-B": ("rar", (16, (16, 16)), rar_shapes(768, 24, 16, 3072, 1024, 1000, 256), 261e6),
    "RAR-L": ("rar", (16, (16, 16)), rar_shapes(1024, 24, 16, 4096, 1024, 1000, 256), 461e6),
    "RAR-XL": ("rar", (16, (16, 16)), rar_shapes(1280, 32, 16, 5120, 1024, 1000, 256), 955e6),
    "RAR-XXL": ("rar", (16, (16, 16)), rar_shapes(1408, 40, 16, 6144, 1024, 1000, 256), 1499e6),
    "MaskGIT-VQGAN": ("vq", (), vq_shapes(128, (128, 128, 256, 256, 512), 2, 256, 1024), None),
}
DIGESTS = {"ARPG-L": "b979de10429f8ced", "ARPG-XL": "aaf66b016377b62f", "ARPG-XXL": "e369acd018471073"}


@pytest.mark.parametrize("name", FULL)
def test_official_sizes_load(name):
    port, further, shapes, parameters = FULL[name]
    model = LOAD[port][0](empty(shapes), *further)
    text = "\n".join(f"{k} {shapes[k]}" for k in sorted(shapes))
    assert name not in DIGESTS or hashlib.sha256(text.encode()).hexdigest()[:16] == DIGESTS[name]
    if port == "rar":
        assert abs(n_params(model) - parameters) < 1e6  # the paper gives millions
    elif port == "arpg":
        assert n_params(model) == parameters
    else:
        assert model.encoder.factor == model.decoder.factor == 16 and model.quantizer.vocab == 1024


@pytest.mark.parametrize("place", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("port", LOAD)
def test_loaded_is_ready(port, place):
    load, shapes = LOAD[port]
    state = {k: v.bfloat16() for k, v in probes.fill(shapes()).items()}
    model = load({place: state, "optimizer": {}, "ema": {}} if place else state)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {
        1e-5 if port == "arpg" else 1e-6
    }  # too small to see
    if port == "vq":
        assert model.quantizer.started and not model.quantizer.hits.any()
        assert torch.equal(model.encoder.conv_in.weight, state["encoder.conv_in.weight"].float())
    else:
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k].float()) for k, v in model.state_dict().items())


@pytest.mark.parametrize("make", [tiny_rar, tiny_vq])
def test_round_trip(make, tmp_path):
    model = make()
    again = checkpoint.load(checkpoint.save(tmp_path / "model.safetensors", model))
    assert checkpoint.spec(again) == checkpoint.spec(model)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters()))


FAULTS = [
    ("arpg", "embeddings.weight", None, "ARPG: misses 'embeddings.weight': is it another model?"),
    ("arpg", "embeddings.weight", (51, 64), "'embeddings.weight' has 51 rows, expected 48 codes and 4 at least"),
    ("arpg", "head.weight", (48,), "'head.weight' is (48,), expected 2 dimensions"),
    ("arpg", "head.weight", (48, 32), "'head.weight' is (48, 32), expected (48, 64) by the other shapes"),
    ("arpg", "layers.to_k.weight", None, "misses 'layers.to_k.weight'"),
    ("arpg", "layers.cross_dec.1.attn.to_q.weight", (64, 32), "(64, 32), expected (64, 64) by the other shapes"),
    ("arpg", "layers.cross_dec.1.attn.to_k.weight", (64, 64), "holds 'layers.cross_dec.1.attn.to_k.weight', which has"),
    ("arpg", "layers.self_dec.9999999.ffn.w1.weight", (1,), "has 3 layers in self_dec and 2 in cross_dec, expected as"),
    ("rar", "embeddings.weight", None, "RAR: misses 'embeddings.weight': is it another model?"),
    ("rar", "embeddings.weight", (50, 64), "'embeddings.weight' has 50 rows, expected 48 codes and 3 at least"),
    ("rar", "pos_embed", (1, 1049, 64), "'pos_embed' is for 25 tokens, expected 16 (4x4): is grid right?"),
    ("rar", "pos_embed", (1040, 64), "'pos_embed' is (1040, 64), expected 3 dimensions"),
    ("rar", "timesteps_embeddings", (1, 20, 64), "(1, 20, 64), expected (1, 116, 64) by the other shapes"),
    ("rar", "blocks.1.attn.k_norm.weight", (64,), "'blocks.1.attn.k_norm.weight' is (64,), expected (16,)"),
    ("rar", "blocks.1.adaLN_modulation.1.bias", None, "misses 'blocks.1.adaLN_modulation.1.bias'"),
    ("rar", "blocks.1.norm3.weight", (64,), "holds 'blocks.1.norm3.weight', which has no place in it"),
    ("rar", "attn_mask", (1040, 1040), "holds 'attn_mask', which has no place in it"),
    ("vq", "quantize.embedding.weight", None, "MaskGIT-VQGAN: misses 'quantize.embedding.weight': is it another"),
    ("vq", "encoder.conv_in.weight", (30, 3, 3, 3), "'encoder.conv_in.weight' gives 30 channels, expected a multiple"),
    ("vq", "encoder.down.1.block.0.conv1.weight", (9, 32, 3, 3), "gives 9 channels, expected a multiple of 32"),
    ("vq", "encoder.down.2.block.0.nin_shortcut.weight", None, "misses 'encoder.down.2.block.0.nin_shortcut.weight'"),
    ("vq", "encoder.down.2.block.0.nin_shortcut.weight", (64, 32, 1, 1), "(64, 32, 1, 1), expected (64, 64, 1, 1)"),
    ("vq", "encoder.conv_in.bias", (32,), "holds 'encoder.conv_in.bias', which has no place in it"),
    ("vq", "encoder.down.3.block.0.conv1.weight", (64, 64, 3, 3), "4 levels in encoder.down and 3 in decoder.up, exp"),
    ("vq", "decoder.conv_in.weight", (64, 8, 3, 3), "'decoder.conv_in.weight' is (64, 8, 3, 3), expected (64, 16, 3"),
    ("vq", "quant_conv.weight", (16, 16, 1, 1), "holds 'quant_conv.weight', which has no place in it"),
]


@pytest.mark.parametrize("port, key, shape, message", FAULTS)
def test_faults_are_named(port, key, shape, message):
    load, shapes = LOAD[port]
    shapes = {k: s for k, s in shapes().items() if k != key} | ({key: shape} if shape else {})
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load(empty(shapes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", LOAD)
def test_each_refuses_the_others(port):
    for other in LOAD.keys() - {port}:
        with pytest.raises(CheckpointError, match="is it another model"):
            LOAD[port][0](empty(LOAD[other][1]()))


@pytest.mark.parametrize("n_heads", [0, 5, 32])
def test_wrong_heads(n_heads):
    with pytest.raises(ValueError, match=f"width 64 must split into {n_heads} heads of a multiple of 4 channels"):
        LOAD["arpg"][0](empty(arpg_shapes()), n_heads)


@pytest.mark.parametrize("n_heads", [0, 5, 8])
def test_wrong_heads_of_rar(n_heads):
    message = rf"'blocks.0.attn.q_norm.weight' is \(16,\), expected 64 channels / {n_heads} heads"
    with pytest.raises(CheckpointError, match=message):
        LOAD["rar"][0](empty(rar_shapes()), n_heads)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tiny_arpg().logits(TOKENS[:, :9], LABEL, ORDERS), r"tokens must be \(2, 16\)"),
        (lambda: tiny_arpg().logits(TOKENS + 40, LABEL, ORDERS), r"tokens must lie in 0..47"),
        (lambda: tiny_arpg().logits(TOKENS, LABEL, raster(4, 5)), "the plan has 20 slots, the model's images have 16"),
        (lambda: tiny_arpg().logits(TOKENS[:1], LABEL[:1], ORDERS), "orders for a batch of 2, got a batch of 1"),
        (lambda: tiny_arpg().generate(LABEL + 5, (1,) * 16), r"label must lie in 0..10, got values from 8 to 14"),
        (lambda: tiny_arpg().generate(LABEL, (1, 2)), "steps of 3 slots in all do not fit 16 positions"),
        (lambda: tiny_rar().generate(LABEL, cfg=-1), r"cfg must be a number in \[0, inf\], got -1"),
        (lambda: tiny_rar().logits(TOKENS, LABEL, PLANS["sets"]), "RAR draws one token a step: use a plan such as"),
        (lambda: tiny_vq().encode(probes.image(2, 18, 18)), "height and width must be multiples of 4"),
        (lambda: tiny_vq().encode(255 * probes.image(2, 16, 16)), r"images must lie in \[-1, 1\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("make", [tiny_arpg, tiny_rar])
@torch.no_grad()
def test_a_cache_that_is_ahead_is_refused(make):
    model, cache = make(), KVCache(17)
    model.hidden(TOKENS, LABEL, raster(4, 4), 5, 6, cache)
    with pytest.raises(ValueError, match="slot 3 was computed before"):
        model.hidden(TOKENS, LABEL, raster(4, 4), 3, 4, cache)
