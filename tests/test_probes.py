"""The ports compute what the official classes compute, load what is official, and say what is wrong with the rest."""

import argparse
import hashlib
import os
import re

import probes
import pytest
import torch
from probes import OFFICIAL, differs

import minar.gpt
from minar import KVCache, model_laws
from minar.lab import checkpoint
from minar.lab.checkpoint import CheckpointError
from minar.plan import region_groups
from minar.ports import par
from minar.ports.llamagen import load_gpt, load_vqvae, read, unwrap
from minar.transformer import rope_2d

GPT, VQ = OFFICIAL["llamagen_gpt"], OFFICIAL["llamagen_vq"]
TINY_GPT = probes.gpt_shapes(64, 2, 192, vocab=48, n_classes=10)
TINY_VQ = probes.vq_shapes((1, 2), latent=32, vocab=64)
FULL = {  # name: (heads or None, shapes, entries, parameters, digest of the official names and shapes)
    "GPT-B": (12, probes.gpt_shapes(768, 12, 2048), 88, 110_888_448, "12e5d11bd5cc18db"),
    "GPT-L": (16, probes.gpt_shapes(1024, 24, 2816), 172, 342_910_976, "2ae6d209f51886cd"),
    "GPT-XL": (20, probes.gpt_shapes(1280, 36, 3584), 256, 774_699_520, "1aea0fc0dfe17e98"),
    "GPT-XXL": (24, probes.gpt_shapes(1536, 48, 4096), 340, 1_410_972_672, "a8c2eed26f5c444e"),
    "GPT-3B": (32, probes.gpt_shapes(3200, 24, 8704), 172, 3_096_659_200, "9671d5ac9f506bb0"),
    "VQ-16": (None, probes.vq_shapes((1, 1, 2, 2, 4)), 344, 71_883_403, "accd1f4a11c78954"),
    "VQ-8": (None, probes.vq_shapes((1, 2, 2, 4)), 300, 70_109_835, "8045ae34f8bbf34f"),
}


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def n_params(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def gpt_state():
    return probes.fill(TINY_GPT)


@pytest.fixture(scope="module")
def gpt(gpt_state):
    return load_gpt(gpt_state, n_heads=4, grid=(4, 4))


@pytest.fixture(scope="module")
def vq_state():
    return probes.fill(TINY_VQ)


@pytest.fixture(scope="module")
def vqvae(vq_state):
    return load_vqvae(vq_state)


@pytest.fixture(scope="module")
def images():
    return probes.image(2, 16, 16)


@pytest.fixture
def drawn():
    tokens = probes.tokens(2, 16, 48)
    return tokens, torch.tensor(GPT["labels"])


def test_rules(images):
    for k in (0, 7):
        told = torch.tensor(OFFICIAL["_hash_check"][f"hash01({k},4)"], dtype=torch.double)
        assert torch.allclose(torch.from_numpy(probes.scramble(k, 4)), told, rtol=0, atol=1e-8)
    told = OFFICIAL["_image_check"]
    assert torch.allclose(images[0, 0, 0, :4], torch.tensor(told["[0,0,0,:4] of image(2,16,16)"]), rtol=0, atol=1e-6)
    assert torch.allclose(images[1, 2, 15, -3:], torch.tensor(told["[1,2,15,-3:]"]), rtol=0, atol=1e-6)
    assert probes.tokens(2, 16, 48).tolist() == GPT["tokens"]


def test_rope():
    told = OFFICIAL["llamagen_rope_4x4_hd16"]
    table = rope_2d(torch.arange(17) - 1, 4, 16)
    assert list(table.shape) == told["shape"]
    assert not table[0].any()
    expected = torch.tensor(told["pos(row1,col2) cos/sin"])
    assert torch.allclose(table[1 + 1 * 4 + 2], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_gpt(gpt, drawn):
    tokens, label = drawn
    logits = gpt.logits(tokens[:, :-1], label)
    assert n_params(gpt) == GPT["n_params"]
    assert gpt.trunk.hidden == GPT["ffn"]
    assert differs(logits, GPT["logits"]) < 2e-5
    assert logits[0].argmax(-1).tolist() == GPT["argmax0"]
    assert abs(float(gpt(tokens, label, p_drop=0)) - GPT["loss"]) < 2e-5


def test_gpt_cached(gpt, drawn):
    tokens, label = drawn
    cache = KVCache(16)
    rows = [gpt.logits(tokens[:, :i], label, cache) for i in range(16)]
    assert (torch.cat(rows, 1) - gpt.logits(tokens[:, :-1], label)).abs().max() < 2e-5


@torch.no_grad()
def test_probe_catches_a_class_token_that_is_not_turned(gpt, drawn, monkeypatch):
    def identity(place, *args):
        table = rope_2d(place, *args)
        table[place < 0] = torch.tensor([1.0, 0.0])
        return table

    tokens, label = drawn
    right = gpt.logits(tokens[:, :-1], label)
    monkeypatch.setattr(minar.gpt, "rope_2d", identity)
    wrong = gpt.logits(tokens[:, :-1], label)
    assert abs(float((wrong - right).abs().mean()) - GPT["wrong_identity_rope_cls_meanabsdiff"]) < 2e-5
    assert torch.allclose(wrong[:, 0], right[:, 0])  # alone, it looks at itself either way
    assert differs(wrong, GPT["logits"]) > 1e-3


@torch.no_grad()
def test_vqvae(vqvae, images):
    latent = []
    hook = vqvae.encoder.conv_out.register_forward_hook(lambda *x: latent.append(x[-1]))
    z = vqvae.encoder(images)
    hook.remove()
    quantized = vqvae.quantizer(z)
    assert n_params(vqvae) == VQ["n_params"]
    assert len(TINY_VQ.keys() - probes.BUFFERS) == VQ["n_tensors"]
    assert differs(latent[0], VQ["enc"]) < 1e-3
    assert differs(z, VQ["z"]) < 1e-3
    assert differs(quantized.z, VQ["quant"]) < 1e-3
    assert quantized.tokens[0].tolist() == VQ["idx0"]
    assert quantized.tokens[1, :16].tolist() == VQ["idx1_first16"]
    assert torch.equal(vqvae.encode(images), quantized.tokens)
    painted = vqvae.decoder(quantized.z)
    assert differs(painted, VQ["rec"]) < 1e-3
    assert torch.allclose(vqvae.decode(quantized.tokens), painted.clamp(-1, 1), atol=1e-4)


@torch.no_grad()
def test_vqvae_losses(vqvae, images, monkeypatch):
    codebook, commitment = VQ["train_losses"][:2]
    z = vqvae.encoder(images)
    assert abs(float(vqvae.quantizer(z).loss) - codebook - commitment) < 1e-5
    monkeypatch.setattr(vqvae.quantizer, "beta", 0)
    assert abs(float(vqvae.quantizer(z).loss) - codebook) < 1e-5


def test_loaded_is_ready(gpt, vqvae):
    assert not gpt.training
    assert not vqvae.training
    assert vqvae.quantizer.started
    assert not vqvae.quantizer.hits.any()
    assert {m.eps for m in vqvae.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}  # too small for a probe
    encoder, decoder = vqvae.encoder, vqvae.decoder
    assert (encoder.in_channels, encoder.z_channels, encoder.latent_channels, encoder.factor) == (3, 8, 32, 2)
    assert (encoder.width, encoder.mults, encoder.n_blocks) == (128, (1, 2), 2)
    assert (decoder.out_channels, decoder.z_channels, decoder.latent_channels, decoder.factor) == (3, 8, 32, 2)
    assert (decoder.width, decoder.mults, decoder.n_blocks) == (128, (1, 2), 2)


@pytest.mark.parametrize("name", FULL)
def test_official_sizes_load(name):
    n_heads, shapes, entries, parameters, digest = FULL[name]
    text = "\n".join(f"{k} {shapes[k]}" for k in sorted(shapes))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    assert len(shapes) == entries
    state = empty(shapes)
    model = load_gpt(state, n_heads, (16, 16)) if n_heads else load_vqvae(state)
    assert n_params(model) == parameters
    if not n_heads:
        assert model.encoder.factor == int(name[3:])


def test_a_weight_in_half_precision_becomes_float32(gpt_state, gpt):
    half = load_gpt({k: v.bfloat16() for k, v in gpt_state.items()}, 4, (4, 4))
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert torch.equal(half.embed.weight, gpt.embed.weight.bfloat16().float())


def test_extras_that_are_allowed(gpt_state, gpt, vq_state):
    again = load_gpt(gpt_state | {"freqs_cis": torch.zeros(17, 8, 2)}, 4, (4, 4))
    assert torch.equal(again.head.weight, gpt.head.weight)
    load_vqvae(empty({k: s for k, s in TINY_VQ.items() if k != "quantize.codebook_used"}))


@pytest.mark.parametrize("n_heads, message", [(5, "width 64 must split into 5 heads"), (32, "multiple of 4 channels")])
def test_wrong_heads(n_heads, message):
    with pytest.raises(ValueError, match=message):
        load_gpt(empty(TINY_GPT), n_heads, (4, 4))


GPT_FAULTS = [
    ("tok_embeddings.weight", None, "LlamaGen GPT: misses 'tok_embeddings.weight': is it another model?"),
    ("tok_embeddings.weight", (48,), "LlamaGen GPT: 'tok_embeddings.weight' is (48,), expected 2 dimensions"),
    ("layers.0.feed_forward.w1.weight", None, "misses 'layers.0.feed_forward.w1.weight'"),
    ("layers.1.feed_forward.w3.weight", None, "misses 'layers.1.feed_forward.w3.weight'"),
    ("layers.1.attention.wqkv.weight", (128, 64), "'layers.1.attention.wqkv.weight' is (128, 64), expected (192, 64)"),
    ("layers.1.feed_forward.w3.weight", (96, 64), "'layers.1.feed_forward.w3.weight' is (96, 64), expected (192, 64)"),
    ("output.weight", (64, 64), "'output.weight' is (64, 64), expected (48, 64) by the other shapes"),
    ("layers.1.attention.bias", (64,), "holds 'layers.1.attention.bias', which has no place in it"),
    ("layers.x.norm.weight", (64,), "holds 'layers.x.norm.weight', which has no place in it"),
    ("layers.99999999.norm.weight", (64,), "misses 'layers.2.attention"),
    ("cls_embedding.cap_proj.fc1.weight", (64, 2048), "'cls_embedding.cap_proj.fc1.weight': text-to-image is not supp"),
    ("cls_embedding.uncond_embedding", (120, 2048), "'cls_embedding.uncond_embedding': text-to-image is not supported"),
]
VQ_FAULTS = [
    ("quantize.embedding.weight", None, "LlamaGen tokenizer: misses 'quantize.embedding.weight': is it another model?"),
    (
        "encoder.conv_in.weight",
        (100, 3, 3, 3),
        "'encoder.conv_in.weight' gives 100 channels, expected a multiple of 32",
    ),
    ("encoder.conv_in.weight", (100,), "'encoder.conv_in.weight' is (100,), expected 4 dimensions"),
    ("encoder.mid.1.q.bias", None, "misses 'encoder.mid.1.q.bias'"),
    ("encoder.conv_blocks.1.res.0.conv1.weight", (9, 128, 3, 3), "(9, 128, 3, 3), expected (128, 128, 3, 3) by the"),
    ("decoder.conv_blocks.1.res.0.nin_shortcut.bias", None, "misses 'decoder.conv_blocks.1.res.0.nin_shortcut.bias'"),
    ("decoder.conv_blocks.1.res.2.conv1.bias", (64,), "conv_blocks.1.res.2.conv1.bias' is (64,), expected (128,)"),
    ("quant_conv.weight", (4, 32, 1, 1), "'quant_conv.weight' is (4, 32, 1, 1), expected (8, 32, 1, 1)"),
    ("encoder.conv_blocks.0.attn.0.q.weight", (1,), "holds 'encoder.conv_blocks.0.attn.0.q.weight', which has no"),
    ("quantizer.hits", (64,), "holds 'quantizer.hits', which has no place in it: is it another model?"),
]


@pytest.mark.parametrize("key, shape, message", GPT_FAULTS + VQ_FAULTS)
def test_faults_are_named(key, shape, message):
    gpt = (key, shape, message) in GPT_FAULTS
    shapes = {k: s for k, s in (TINY_GPT if gpt else TINY_VQ).items() if k != key}
    state = empty(shapes | ({key: shape} if shape else {}))
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        load_gpt(state, 4, (4, 4)) if gpt else load_vqvae(state)
    assert "\n" not in str(caught.value)


def test_each_loader_refuses_the_other_model():
    with pytest.raises(CheckpointError, match=r"GPT: misses 'tok_embeddings.weight': is it another model"):
        load_gpt(empty(TINY_VQ), 4, (4, 4))
    with pytest.raises(CheckpointError, match=r"tokenizer: misses 'quantize.embedding.weight': is it another model"):
        load_vqvae(empty(TINY_GPT))


@pytest.mark.parametrize("place", ["model", "module", "state_dict", None])
def test_unwrap(gpt_state, place):
    held = {place: gpt_state, "optimizer": {}, "steps": 3, "ema": {}} if place else gpt_state
    assert unwrap(held) is gpt_state
    load_gpt(held, 4, (4, 4))


@pytest.mark.parametrize(
    "held, message",
    [
        ([1], "expected a dict of tensors, got a list"),
        ({}, "the dict is empty"),
        ({"model": {}}, "the dict is empty"),
        ({"weights": {"a": torch.zeros(1)}}, "'weights' is a dict, not a tensor: pass what `read` gave"),
    ],
)
def test_unwrap_refuses(held, message):
    with pytest.raises(CheckpointError, match=f"official weights: {message}"):
        unwrap(held)


def test_round_trip(gpt, vqvae, drawn, images, tmp_path):
    again = checkpoint.load(checkpoint.save(tmp_path / "gpt.safetensors", gpt))
    assert torch.equal(again.logits(drawn[0][:, :-1], drawn[1]), gpt.logits(drawn[0][:, :-1], drawn[1]))
    again = checkpoint.load(checkpoint.save(tmp_path / "vq.safetensors", vqvae))
    assert torch.equal(again.encode(images), vqvae.encode(images))
    assert again.quantizer.started
    assert checkpoint.spec(again) == checkpoint.spec(vqvae)


def test_a_tokenizer_without_the_import_is_refused(tmp_path, vqvae, monkeypatch):
    file = checkpoint.save(tmp_path / "vq.safetensors", vqvae, torch.float16)
    monkeypatch.delitem(checkpoint.CLASSES, "LlamaGenEncoder")
    with pytest.raises(CheckpointError, match="holds a 'LlamaGenEncoder'; known are"):
        checkpoint.load(file)


def test_read(gpt_state, gpt, tmp_path):
    args = argparse.Namespace(gpt_model="GPT-B", image_size=256, cfg=None)
    torch.save({"model": gpt_state, "steps": 7, "args": args}, tmp_path / "official.pt")
    held = read(tmp_path / "official.pt")
    assert held["args"] == args
    again = load_gpt(held, 4, (4, 4))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), gpt.parameters()))


class Code:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_read_refuses_code(tmp_path):
    torch.save({"model": {}, "args": Code(tmp_path / "it_ran")}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match=r"code.pt: refused, because it asks for \w+.mkdir: a file of weights"):
        read(tmp_path / "code.pt")
    assert not (tmp_path / "it_ran").exists()


def test_read_refuses_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.pt: no such file; official weights"):
        read(tmp_path / "none.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list.pt: holds a list, expected a dict of weights"):
        read(tmp_path / "list.pt")
    for name, data in {"empty": b"", "text": b"hello", "cut": (tmp_path / "list.pt").read_bytes()[:400]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}: truncated or not a PyTorch file.*fetch it again") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


PAR = OFFICIAL["par"]
TRANSITION = "spe_tok_embeddings.special_embeddings.weight"


def par_shapes(width=64, n_layers=2, hidden=192, n_transition=3):
    return probes.gpt_shapes(width, n_layers, hidden, vocab=48, n_classes=10) | {TRANSITION: (n_transition, width)}


@torch.no_grad()
def test_par():
    model, plan = par.load(probes.fill(par_shapes()), 4, (4, 4), per_side=2), region_groups(4, 4, 2)
    tokens, label = torch.tensor(PAR["raster_tokens"]), torch.tensor(PAR["labels"])
    assert n_params(model) - model.target.weight.numel() == PAR["n_params"] and not model.target.weight.any()
    logits = model.head.logits(model.hidden(plan.permute(tokens), model.prefix(label), plan))
    assert differs(logits, PAR["logits"]) < 2e-5
    assert logits[0].argmax(-1).tolist() == PAR["argmax0"]
    assert abs(float(model(tokens, label, plan, p_drop=0.0)) - PAR["loss_vs_seq"]) < 2e-5
    model_laws.check_cache(model, tokens, label, plan)


@torch.no_grad()
@pytest.mark.parametrize(("grid", "per_side", "n_heads"), [((4, 4), 4, 4), ((6, 6), 2, 2), ((8, 4), 2, 8)])
def test_par_of_any_size_is_the_official_forward(grid, per_side, n_heads):
    """The official sequence, mask and rotary table written out: [class, n tokens, n - 1 learned, blocks of n]."""
    n, N = per_side**2, grid[0] * grid[1]
    state = probes.fill(par_shapes(n_transition=n - 1))
    model, plan = par.load(state, n_heads, grid, per_side), region_groups(*grid, per_side)
    tokens, label = probes.tokens(2, N, 48), torch.tensor([3, 10])
    order, place = tokens[:, plan.pos], plan.pos
    embed = state["tok_embeddings.weight"][order]
    learned = state[TRANSITION].expand(2, -1, -1)
    x = torch.cat(
        [state["cls_embedding.embedding_table.weight"][label][:, None], embed[:, :n], learned, embed[:, n:]], 1
    )
    nowhere = torch.full((1,), -1)
    rope = rope_2d(torch.cat([nowhere, place[:n], nowhere.expand(n - 1), place[n:]]), grid[1], 64 // n_heads)
    i = torch.arange(N)
    last = torch.where(i < n, i, n + ((i - n) // n + 1) * n - 1)  # the last column that row i sees
    mask = torch.arange(N) <= last[:, None]
    h = model.trunk(x[:, :N], mask, rope[:N])
    ours = model.hidden(plan.permute(tokens), model.prefix(label), plan)
    assert (h - ours).abs().max() < 2e-5


def test_par_says_what_is_wrong():
    state = probes.fill(par_shapes())
    with pytest.raises(CheckpointError, match=r"is \(3, 64\), expected \(15, 64\) for 4x4 regions"):
        par.load(state, 4, (4, 4), 4)
    with pytest.raises(CheckpointError, match=r"PAR: misses 'spe_tok_embeddings.special_embeddings.weight'"):
        par.load({k: v for k, v in state.items() if k != TRANSITION}, 4, (4, 4), 2)
    with pytest.raises(CheckpointError, match=r"misses 'layers.1.attention.wo.weight'"):
        par.load({k: v for k, v in state.items() if k != "layers.1.attention.wo.weight"}, 4, (4, 4), 2)
