"""Official VAR weights: a transformer that predicts all tokens of a scale at once, from the picture so far.

    vae = load_vae(read("vae_ch160v4096z32.pth"), sides=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    model = load_transformer(read("var_d16.pth"), vae, n_heads=16)
    images = vae.decode(model.generate(label, cfg=1.5, top_k=900, top_p=0.96))

A slot is told its place and its scale by learned vectors, and reads what the scales before have summed up to, shrunk to
its own scale. It sees its own scale and those before. The class is the start token, and it also sets scale, shift and
gate of each layer.

Source: FoundationVision/VAR, models/{var,basic_var}.py. Tian et al., "Visual Autoregressive Modeling: Scalable Image
Generation via Next-Scale Prediction", 2024.
"""

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from minar import VQVAE
from minar.cache import KVCache
from minar.checks import check_ids, check_number
from minar.heads import sample_token
from minar.lab.checkpoint import CheckpointError, register
from minar.ports.official import State, count, fill, read, shape, unwrap
from minar.ports.var_vae import VARQuantizer, load_vae
from minar.sampling import guide

__all__ = ["VARTransformer", "load_transformer", "load_vae", "read"]

TABLES = ("lvl_1L", "attn_bias_for_masking")  # what follows from the sides, and is in the file nevertheless
SIGMA = "blocks.0.attn.scale_mul_1H11"


def load_transformer(state_dict: dict, vae: VQVAE, n_heads: int) -> "VARTransformer":
    """VAR from its official weights, in eval mode, on their device, in float32.

    vae: what load_vae returned, with the sides that the weights were trained for. Its quantizer is copied into the
    model, frozen. n_heads: the depth for all released weights, 16 for d16. All other sizes are read off the shapes;
    the keys tell whether attention is l2-normalised and AdaLN shared.
    Raises CheckpointError, naming the official key, for anything missing, unknown or misshaped, and if sides, codes or
    n_heads are not those of the weights; ValueError if the width does not split into n_heads. Without l2-norm the file
    does not tell n_heads, and a wrong one that fits the width loads. The tables (`lvl_1L`, `attn_bias_for_masking`,
    `zero_k_bias`) may be there or not.
    """
    what = "VAR"
    given = getattr(vae, "quantizer", None)
    if not isinstance(given, VARQuantizer):
        raise TypeError(f"vae must come from load_vae, got a {type(vae).__name__} with a {type(given).__name__}")
    state = unwrap(state_dict)
    _check_scales(state, given.sides, what)
    _check_codes(state, given, what)
    state = {k: v for k, v in state.items() if k not in TABLES and not k.endswith(".attn.zero_k_bias")}
    n_rows, width = shape(state, "class_emb.weight", 2, what)
    mlp_width, _ = shape(state, "blocks.0.ffn.fc1.weight", 2, what)
    if SIGMA in state and (trained := shape(state, SIGMA, 4, what)[1]) != n_heads:
        raise CheckpointError(f"{what}: {SIGMA!r} is for {trained} heads, got n_heads={n_heads}")
    frozen = {f"quantizer.{k}": v for k, v in given.state_dict().items()}
    if odd := state.keys() & frozen.keys():
        raise CheckpointError(f"{what}: holds {min(odd)!r}, which has no place in it: is it another model?")
    with torch.device("meta"):
        quantizer = VARQuantizer(given.vocab, given.channels, given.sides, given.n_phi, given.beta)
        sizes = width, count(state, "blocks"), n_heads, mlp_width, n_rows - 1
        model = VARTransformer(quantizer, *sizes, SIGMA in state, "shared_ada_lin.1.weight" in state)
    return fill(model, state | frozen, lambda key: [key], what)


def _check_scales(state: State, sides: tuple[int, ...], what: str) -> None:
    """Raise unless the position tables, and the scale of each slot if it is in the file, are those of the sides."""
    slots = [side**2 for side in sides]
    for key, dims, expected in (
        ("pos_start", 3, slots[0]),
        ("pos_1LC", 3, sum(slots)),
        ("lvl_embed.weight", 2, len(slots)),
    ):
        given = shape(state, key, dims, what)[dims - 2]
        if given != expected:
            raise CheckpointError(f"{what}: {key!r} has {given} rows, expected {expected} for the vae's sides {sides}")
    level = state.get("lvl_1L")
    if level is None or level.is_meta:
        return
    given = level.unique(return_counts=True)[1].tolist()
    if given != slots:
        raise CheckpointError(f"{what}: 'lvl_1L' has scales of {given} slots, expected {slots} for the vae's {sides}")


def _check_codes(state: State, quantizer: VARQuantizer, what: str) -> None:
    for key, axis, expected, of in (
        ("head.weight", 0, quantizer.vocab, "codes"),
        ("word_embed.weight", 1, quantizer.channels, "channels"),
    ):
        given = shape(state, key, 2, what)[axis]
        if given != expected:
            raise CheckpointError(f"{what}: {key!r} is for {given} {of}, the vae has {expected}")


def layer_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def modulation(width: int, n: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, n * width))


class Attention(nn.Module):
    """With l2_norm, queries and keys have unit length and each head learns how sharply it looks: exp(sigma), up to 100.
    Without, the products are a quarter of what is usual. Keys have no bias.
    """

    def __init__(self, width: int, n_heads: int, l2_norm: bool):
        super().__init__()
        self.n_heads, self.l2_norm = n_heads, l2_norm
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, n_heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(width // n_heads)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.mat_qkv.weight, bias).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, hd)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, hd) each
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(math.log(100)).exp()
            k = F.normalize(k, dim=-1)
        if cache is not None:
            k, v = cache.put(layer, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(2))


class FFN(nn.Module):
    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """x: (B, T, D). c: (B, D), the class; or, where AdaLN is shared, what all layers make of it, (B, 6 D)."""

    def __init__(self, width: int, n_heads: int, mlp_width: int, l2_norm: bool, shared: bool):
        super().__init__()
        self.attn = Attention(width, n_heads, l2_norm)
        self.ffn = FFN(width, mlp_width)
        if shared:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.six(c)
        x = x + gamma1 * self.attn(modulate(layer_norm(x), scale1, shift1), mask, cache, layer)
        return x + gamma2 * self.ffn(modulate(layer_norm(x), scale2, shift2))

    def six(self, c: Tensor) -> tuple[Tensor, ...]:
        """Both gates, both scales, both shifts: (B, 1, D) each."""
        if hasattr(self, "ada_gss"):
            return (c[:, None].unflatten(-1, (6, -1)) + self.ada_gss).unbind(2)
        return self.ada_lin(c)[:, None].chunk(6, -1)


class LastNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ada_lin = modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.ada_lin(c)[:, None].chunk(2, -1)
        return modulate(layer_norm(x), scale, shift)


@register
class VARTransformer(nn.Module):
    """Tokens are (B, L) long, scale behind scale. Labels are (B,) long in 0 .. n_classes, the last is the null class.

    quantizer: of the tokenizer, with the sides; it is frozen. mlp_width: of the feed-forward layers. l2_norm:
    see Attention. shared: one AdaLN for all layers, of which each adds its own vectors.
    Raises ValueError if the width does not split into n_heads.
    """

    def __init__(
        self,
        quantizer: VARQuantizer,
        width: int,
        n_layers: int,
        n_heads: int,
        mlp_width: int,
        n_classes: int,
        l2_norm: bool = True,
        shared: bool = False,
    ):
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise ValueError(f"width {width} must split into {n_heads} heads")
        self.width, self.n_layers, self.n_heads, self.mlp_width = width, n_layers, n_heads, mlp_width
        self.n_classes, self.l2_norm, self.shared = n_classes, l2_norm, shared
        self.quantizer = quantizer.requires_grad_(False)
        self.vocab, self.sides, self.n_tokens = quantizer.vocab, quantizer.sides, quantizer.n_tokens
        self.grid = (self.sides[-1],) * 2
        self.starts = tuple(accumulate((side**2 for side in self.sides), initial=0))  # of the scales, and the end
        self.word_embed = nn.Linear(quantizer.channels, width)
        self.class_emb = nn.Embedding(n_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, self.starts[1], width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, self.n_tokens, width))
        self.lvl_embed = nn.Embedding(len(self.sides), width)
        if shared:
            self.shared_ada_lin = modulation(width, 6)
        self.blocks = nn.ModuleList(Block(width, n_heads, mlp_width, l2_norm, shared) for _ in range(n_layers))
        self.head_nm = LastNorm(width)
        self.head = nn.Linear(width, self.vocab)

    def logits(self, tokens: Tensor, label: Tensor) -> Tensor:
        """Teacher-forced: (B, L) tokens -> (B, L, V) float32."""
        self.check(tokens, label)
        return self.scores(self.quantizer.inputs(tokens), label)

    def forward(self, tokens: Tensor, label: Tensor, p_drop: float = 0.1) -> Tensor:
        """The training loss, (): mean cross-entropy in nats per token, each label forgotten with probability p_drop."""
        self.check(tokens, label)
        forgotten = torch.rand(label.shape, device=label.device) < p_drop
        logits = self.scores(self.quantizer.inputs(tokens), label.masked_fill(forgotten, self.n_classes))
        return F.cross_entropy(logits.transpose(1, 2), tokens)

    def check(self, tokens: Tensor, label: Tensor) -> None:
        """Raise TypeError or ValueError unless these are tokens of whole images with a label for each."""
        check_ids("tokens", tokens, self.vocab, 2)
        check_ids("label", label, self.n_classes + 1, 1)
        if tokens.shape != (len(label), self.n_tokens):
            raise ValueError(f"tokens must be {(len(label), self.n_tokens)} for these labels, got {(*tokens.shape,)}")

    def scores(self, vectors: Tensor, label: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of all slots that the vectors reach, (B, T, V), or only of those that the cache does not hold yet.

        vectors: what the quantizer's `inputs` gives for whole scales from the second on, (B, T - sides[0]^2, channels).
        """
        c, past, end = self.class_emb(label), 0 if cache is None else cache.n, self.starts[1] + vectors.shape[1]
        x = torch.cat([c[:, None] + self.pos_start, self.word_embed(vectors)], 1)
        x = (x + self.places()[:end])[:, past:]
        mask, c_blocks = self.mask(past, end), self.shared_ada_lin(c) if self.shared else c
        for i, block in enumerate(self.blocks):
            x = block(x, c_blocks, mask, cache, i)
        if cache is not None:
            cache.advance(x.shape[1])
        return self.head(self.head_nm(x, c)).float()

    def places(self) -> Tensor:
        """What every slot is told, the start token too: its scale and its place. (L, D)."""
        return self.lvl_embed(self.levels()) + self.pos_1LC[0]

    def levels(self) -> Tensor:
        """The scale of each slot, (L,) long."""
        sides = torch.tensor(self.sides, device=self.pos_1LC.device)
        return torch.arange(len(sides), device=sides.device).repeat_interleave(sides**2, output_size=self.n_tokens)

    def mask(self, past: int, end: int) -> Tensor | None:
        """True where a slot of past .. end-1 may look: at its own scale and those before. None: everywhere."""
        if self.starts.index(end) - self.starts.index(past) == 1:
            return None
        level = self.levels()[:end]
        return level[past:, None] >= level

    @torch.no_grad()
    def generate(
        self,
        label: Tensor,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 1.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
        progress: bool = False,
    ) -> Tensor:
        """Draw an image's tokens for each label, scale by scale: (B,) long -> (B, L) long, for the tokenizer's decode.

        cfg: guidance as VAR counts it, 0 is off; it grows from 0 at the first scale to cfg at the last (see `ramp`).
        top_k 0 and top_p 1 are off; temperature 0 takes the likeliest. use_cache=False computes everything anew at
        every scale; the result is the same. Official: cfg 1.5, top_k 900, top_p 0.96 for FID; cfg 4 for show.
        """
        check_ids("label", label, self.n_classes + 1, 1, wait=True)
        check_number("cfg", cfg, 0)
        label = label.to(self.pos_1LC.device)
        rows, twice = (torch.cat([label, torch.full_like(label, self.n_classes)]), 2) if cfg else (label, 1)
        cache, n_scales = KVCache(self.n_tokens) if use_cache else None, len(self.sides)
        tokens, total = [], 0
        vectors = self.pos_1LC.new_zeros(len(label), 0, self.quantizer.channels)
        for s in trange(n_scales, disable=not progress, desc="decode"):
            logits = self.scores(vectors.repeat(twice, 1, 1), rows, cache)[:, -(self.sides[s] ** 2) :]
            if cfg:
                logits = guide(*logits.chunk(2), 1 + ramp(cfg, s, n_scales))
            tokens.append(sample_token(logits, temperature, top_k, top_p, generator))
            total = total + self.quantizer.grow(tokens[s], s)
            if s + 1 < n_scales:
                vectors = torch.cat([vectors, self.quantizer.shrink(total, s + 1)], 1)
        return torch.cat(tokens, 1)


def ramp(cfg: float, s: int, n_scales: int) -> float:
    """VAR's t of scale s, with which logits are (1 + t) cond - t null: in LlamaGen's convention the scale is 1 + t."""
    return cfg * s / (n_scales - 1)
