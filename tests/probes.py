"""What the official classes compute, and the means to compare with it without downloading any weights.

Weights and inputs follow simple rules, so that anybody can build them; official.json holds what the official classes
made of them. A port is compared by building the weights under their official names and loading them.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

OFFICIAL = json.loads((Path(__file__).parent / "official.json").read_text())
BUFFERS = ("quantize.codebook_used",)  # the fill rule counts parameters only

Shapes = dict[str, tuple[int, ...]]


def scramble(k: int, n: int) -> np.ndarray:
    """n numbers in [-1, 1) for the k-th tensor: an integer hash, the same on every machine. (n,) float64."""
    u = np.arange(1, n + 1, dtype=np.uint32) * np.uint32(2654435761) + np.uint32((k + 1) * 2654435769 % 2**32)
    u ^= u >> np.uint32(15)
    u *= np.uint32(2246822519)
    u ^= u >> np.uint32(13)
    u *= np.uint32(3266489917)
    u ^= u >> np.uint32(16)
    return u / 2**31 - 1


def fill(shapes: Shapes) -> dict[str, torch.Tensor]:
    """A state dict for {official name: shape}: matrices keep the variance, norms lie near 1, biases near 0."""
    state = {name: torch.zeros(shapes[name]) for name in BUFFERS if name in shapes}
    for k, name in enumerate(sorted(shapes.keys() - state.keys())):
        shape = shapes[name]
        v = scramble(k, math.prod(shape))
        if len(shape) > 1:
            v = v * math.sqrt(3 / math.prod(shape[1:]))
        else:
            v = 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
        state[name] = torch.from_numpy(v).float().view(shape)
    return state


def image(b: int, h: int, w: int) -> torch.Tensor:
    """(b, 3, h, w) in [-0.8, 0.8]."""
    b, c, r, s = np.ogrid[:b, :3, :h, :w]
    wave = np.sin(0.35 * (r + 1) * (1 + 0.5 * c) + 0.21 * (s + 1) + 0.9 * b)
    return torch.from_numpy(0.8 * wave * np.cos(0.13 * (s + 1) * (1 + 0.3 * c) - 0.4 * b)).float()


def tokens(b: int, n: int, vocab: int) -> torch.Tensor:
    """(b, n) long."""
    b, t = torch.arange(b)[:, None], torch.arange(n)
    return (37 * t + 101 * b + 5 + t**2) % vocab


def gpt_shapes(width: int, n_layers: int, hidden: int, vocab: int = 16384, n_classes: int = 1000) -> Shapes:
    """The official names and shapes of a class-conditional GPT."""
    shapes = {
        "cls_embedding.embedding_table.weight": (n_classes + 1, width),
        "tok_embeddings.weight": (vocab, width),
        "norm.weight": (width,),
        "output.weight": (vocab, width),
    }
    block = {
        "attention.wqkv": (3 * width, width),
        "attention.wo": (width, width),
        "feed_forward.w1": (hidden, width),
        "feed_forward.w3": (hidden, width),
        "feed_forward.w2": (width, hidden),
        "attention_norm": (width,),
        "ffn_norm": (width,),
    }
    return shapes | {f"layers.{i}.{name}.weight": shape for i in range(n_layers) for name, shape in block.items()}


def vq_shapes(mults: tuple[int, ...], latent: int = 256, vocab: int = 16384, dim: int = 8, width: int = 128) -> Shapes:
    """The official names and shapes of a tokenizer with 2 blocks per level of the encoder."""
    down = [width] + [width * m for m in mults]
    top, n = down[-1], len(mults)
    up = [top, *down[:0:-1]]
    shapes = _conv("encoder.conv_in", width, 3, 3) | _conv("encoder.conv_out", latent, top, 3)
    shapes |= _norm("encoder.norm_out", top) | _norm("decoder.norm_out", up[-1])
    shapes |= _conv("decoder.conv_in", top, latent, 3) | _conv("decoder.conv_out", 3, up[-1], 3)
    shapes |= _conv("quant_conv", dim, latent, 1) | _conv("post_quant_conv", latent, dim, 1)
    for side in ("encoder", "decoder"):
        shapes |= _block(f"{side}.mid.0", top, top) | _block(f"{side}.mid.2", top, top) | _attn(f"{side}.mid.1", top)
    for i in range(n):
        shapes |= _level(f"encoder.conv_blocks.{i}", down[i], down[i + 1], 2, i == n - 1)
        shapes |= _level(f"decoder.conv_blocks.{i}", up[i], up[i + 1], 3, i == 0)
        if i < n - 1:
            shapes |= _conv(f"encoder.conv_blocks.{i}.downsample.conv", down[i + 1], down[i + 1], 3)
            shapes |= _conv(f"decoder.conv_blocks.{i}.upsample.conv", up[i + 1], up[i + 1], 3)
    return shapes | {"quantize.codebook_used": (65536,), "quantize.embedding.weight": (vocab, dim)}


def _level(name: str, a: int, b: int, n_blocks: int, lowest: bool) -> Shapes:
    shapes = {}
    for i, (c, d) in enumerate(pairwise([a] + [b] * n_blocks)):
        shapes |= _block(f"{name}.res.{i}", c, d)
        shapes |= _attn(f"{name}.attn.{i}", b) if lowest else {}
    return shapes


def _block(name: str, a: int, b: int) -> Shapes:
    shapes = _norm(f"{name}.norm1", a) | _conv(f"{name}.conv1", b, a, 3)
    shapes |= _norm(f"{name}.norm2", b) | _conv(f"{name}.conv2", b, b, 3)
    return shapes | (_conv(f"{name}.nin_shortcut", b, a, 1) if a != b else {})


def _attn(name: str, c: int) -> Shapes:
    shapes = _norm(f"{name}.norm", c)
    for layer in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{name}.{layer}", c, c, 1)
    return shapes


def _conv(name: str, out: int, in_: int, side: int) -> Shapes:
    return {f"{name}.weight": (out, in_, side, side), f"{name}.bias": (out,)}


def _norm(name: str, c: int) -> Shapes:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def differs(x: torch.Tensor, expected: dict) -> float:
    """The largest difference from what official.json says about a tensor; infinite for another shape."""
    if list(x.shape) != expected["shape"]:
        return math.inf
    flat = x.detach().double().flatten()
    found = torch.cat([flat.mean()[None], flat.abs().mean()[None], flat[:8], flat[-4:]])
    told = [expected["mean"], expected["absmean"], *expected["first8"], *expected["last4"]]
    return float((found - torch.tensor(told, dtype=torch.double)).abs().max())
