"""Official RAR weights: a causal transformer that is told which token comes next, so that it can learn any order.

    model = load(read("rar_b.bin"), n_heads=16, grid=(16, 16))
    tokens = model.generate(label, cfg=power_cosine(16, 2.75))

The sequence is [cls, class, x_1 ... x_N] in the order of the plan. Each entry has the learned position of its own token
and, from the class on, the target-aware position of the token that it predicts. The class also sets scale, shift and
gate of each layer, with a learned vector for the place in the sequence. There are no rotary angles.

Source: bytedance/1d-tokenizer, modeling/rar.py. Yu et al., "Randomized Autoregressive Visual Generation", 2024.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.cache import KVCache
from minar.heads import CategoricalHead
from minar.lab.checkpoint import CheckpointError, register
from minar.model import Scale, cached_slots, check_behind
from minar.plan import Plan, raster
from minar.ports.arpg import OneTable
from minar.ports.official import State, count, fill, read, shape, unwrap
from minar.transformer import attend

__all__ = ["RAR", "load", "power_cosine", "read"]

MORE_PLACES = 1024  # rows of the position tables beyond the tokens, of which two are used
MORE_STEPS = 100  # the same of the table of places in the sequence


def load(state_dict: dict, n_heads: int, grid: tuple[int, int]) -> "RAR":
    """RAR from its official weights, in eval mode, on their device, in float32.

    All other sizes are read off the shapes. n_heads: 16 for all released weights. grid: (16, 16).
    Raises CheckpointError, naming the official key, for anything missing, unknown or misshaped, and if n_heads or grid
    are not those of the weights.
    """
    what = "RAR"
    state = unwrap(state_dict)
    n_rows, width = shape(state, "embeddings.weight", 2, what)
    vocab, _ = shape(state, "lm_head.weight", 2, what)
    mlp_width, _ = shape(state, "blocks.0.mlp.fc1.weight", 2, what)
    if n_rows < vocab + 3:
        raise CheckpointError(f"{what}: 'embeddings.weight' has {n_rows} rows, expected {vocab} codes and 3 at least")
    _check_heads(state, width, n_heads, what)
    _check_grid(state, grid, what)
    with torch.device("meta"):
        model = RAR(width, count(state, "blocks"), n_heads, mlp_width, vocab, n_rows - vocab - 2, grid)
    return fill(model, state, lambda key: [key], what)


def _check_heads(state: State, width: int, n_heads: int, what: str) -> None:
    key = "blocks.0.attn.q_norm.weight"
    (given,) = shape(state, key, 1, what)
    if given * n_heads != width:
        raise CheckpointError(
            f"{what}: {key!r} is ({given},), expected {width} channels / {n_heads} heads: is n_heads right?"
        )


def _check_grid(state: State, grid: tuple[int, int], what: str) -> None:
    given = shape(state, "pos_embed", 3, what)[1] - MORE_PLACES
    if given != grid[0] * grid[1]:
        h, w = grid
        raise CheckpointError(f"{what}: 'pos_embed' is for {given} tokens, expected {h * w} ({h}x{w}): is grid right?")


def power_cosine(cfg: float, power: float) -> Callable[[Plan, int], float]:
    """Guidance that grows from 1 to almost cfg, late if the power is high: a scale for `generate`.

    The official (cfg, power): B (16, 2.75), L (15.5, 2.5), XL (6.9, 1.5), XXL (8, 1.2).
    """
    return lambda plan, s: 1 + (cfg - 1) * (1 - math.cos(math.pi * (s / plan.n_steps) ** power)) / 2


def layer_norm(width: int, affine: bool = True) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = layer_norm(width // n_heads)
        self.k_norm = layer_norm(width // n_heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, hd)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, hd) each
        q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.put(layer, k, v)
        return self.proj(attend(q, k, v, "causal").transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x, c: (B, T, D). Each slot has a c of its own, which sets scale, shift and gate. The gates start at zero."""

    def __init__(self, width: int, n_heads: int, mlp_width: int):
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = Attention(width, n_heads)
        self.norm2 = layer_norm(width)
        self.mlp = MLP(width, mlp_width)
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), cache, layer)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class LastNorm(nn.Module):
    """Scale comes before shift here, other than in the blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_final = layer_norm(width, affine=False)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(c).chunk(2, -1)
        return modulate(self.norm_final(x), shift, scale)


def modulation(width: int, n: int) -> nn.Sequential:
    last = nn.Linear(width, n * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.SiLU(), last)


class BiasedHead(CategoricalHead):
    """CategoricalHead with a bias."""

    def __init__(self, width: int, vocab: int):
        super().__init__(width, vocab)
        self.bias = nn.Parameter(torch.zeros(vocab))

    def loss(self, h: Tensor, target: Tensor) -> Tensor:
        """See CategoricalHead. All logits are held at once: the vocabulary is small."""
        return F.cross_entropy(self.logits(h).transpose(1, 2), target, reduction="none")


@register
class RAR(OneTable):
    """grid: (h, w) tokens, N = h * w. mlp_width: of the feed-forward layers. Takes plans of one token a step.

    Raises ValueError if the width does not split into n_heads.
    """

    def __init__(
        self,
        width: int,
        n_layers: int,
        n_heads: int,
        mlp_width: int,
        vocab: int,
        n_classes: int,
        grid: tuple[int, int],
    ):
        super().__init__(vocab, n_classes, grid)
        if n_heads < 1 or width % n_heads:
            raise ValueError(f"width {width} must split into {n_heads} heads")
        self.width, self.n_layers, self.n_heads, self.mlp_width = width, n_layers, n_heads, mlp_width
        self.embeddings = nn.Embedding(vocab + n_classes + 2, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = table(self.n_tokens + MORE_PLACES, width)
        self.target_aware_pos_embed = table(self.n_tokens + MORE_PLACES, width)
        self.timesteps_embeddings = table(self.n_tokens + MORE_STEPS, width)
        self.blocks = nn.ModuleList(Block(width, n_heads, mlp_width) for _ in range(n_layers))
        self.adaln_before_head = LastNorm(width)
        self.lm_head = BiasedHead(width, vocab)

    @property
    def head(self) -> CategoricalHead:
        return self.lm_head

    def hidden(
        self,
        tokens: Tensor,
        label: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See OneTable."""
        hi = plan.n_steps if hi is None else hi
        check_behind(cached_slots(cache, 1), lo)
        return self.states(tokens[:, : hi - 1], label, plan, cache)[:, lo - hi :]

    def states(self, tokens: Tensor, label: Tensor, plan: Plan, cache: KVCache | None = None) -> Tensor:
        """(B, t) tokens by slot -> (B, t + 1, D), or only the rows that the cache does not hold yet.

        Row i predicts slot i. With all N tokens there is one row more, which predicts nothing.
        """
        past, end = 0 if cache is None else cache.n, tokens.shape[1] + 2
        label = self.embeddings(self.class_row(label))  # (B, 1, D)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), label, self.embeddings(tokens)], 1)
        x = (x + self.positions(plan, end))[:, past:]
        c = label + self.timesteps_embeddings[:, past:end]
        for i, block in enumerate(self.blocks):
            x = block(x, c, cache, i)
        if cache is not None:
            cache.advance(x.shape[1])
        n_mute = 1 if past == 0 else 0  # cls predicts nothing
        return self.adaln_before_head(x[:, n_mute:], c[:, n_mute:])

    def positions(self, plan: Plan, end: int) -> Tensor:
        """What the first `end` entries of the sequence are told: where they stand and which token is next.

        (end, D), or (B, end, D) where each row has its own order.
        """
        place = F.pad(plan.pos + 2, (2, 0))  # the first two rows of the table are for cls and class
        place[..., 1] = 1
        to_come = F.pad(self.target_aware_pos_embed[0, plan.pos + 2], (0, 0, 1, 1))  # none for cls and the last token
        return self.pos_embed[0, place[..., :end]] + to_come[..., :end, :]

    def check_plan(self, plan: Plan, batch: int) -> None:
        """See OneTable; and each step must be one token."""
        super().check_plan(plan, batch)
        if plan.n_steps != plan.n:
            raise ValueError("RAR draws one token a step: use a plan such as raster or random_order")

    def generate(
        self,
        label: Tensor,
        cfg: Scale = 1.0,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        **knobs,
    ) -> Tensor:
        """Draw an image's tokens for each label in raster order: (B,) long -> (B, N) long.

        cfg: guidance, 1 is off; or a function of plan and step, as `power_cosine`. use_cache=False computes everything
        anew at every token; the result is the same. knobs go to CategoricalHead.sample: temperature, top_k, top_p.
        """
        cache = KVCache(self.n_tokens + 1) if use_cache else None
        return self.follow(label, raster(*self.grid), cfg, cache, generator=generator, **knobs)


def table(n_rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, n_rows, width), std=0.02))
