"""Official ARPG weights: half of the layers read what is known, the other half ask for what is to come, in any order.

    model = load(read("arpg_300m.pt"), n_heads=16, grid=(16, 16))
    tokens = model.generate(label, cosine_sizes(256, 64), cfg=linear(4.5))

The reading half is an ordinary causal transformer. Its last states give one pair of keys and values, which all asking
layers share. A query starts from the mask row of the table and differs from the others only by the angles of the place
it asks for, so any number of places can be asked for at once. The cache holds m + 1 layers of 2 m.

Source: hp-l33/ARPG, models/arpg.py. Li et al., "Autoregressive Image Generation with Randomized Parallel Decoding",
2025.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.cache import KVCache
from minar.checks import check_ids, check_number
from minar.heads import CategoricalHead
from minar.lab.checkpoint import CheckpointError
from minar.model import Scale, cached_slots, check_behind, is_guided
from minar.plan import Plan, random_order
from minar.ports.official import count, fill, read, shape, unwrap
from minar.transformer import Mask, attend, rope_2d, rotate

__all__ = ["ARPG", "OneTable", "linear", "load", "read"]


def load(state_dict: dict, n_heads: int, grid: tuple[int, int]) -> "ARPG":
    """ARPG from its official weights, in eval mode, on their device, in float32.

    All other sizes are read off the shapes. n_heads: 16 for L, 20 for XL, 24 for XXL. grid: (16, 16) for the released
    weights; it is not in the file, and the wrong one loads and paints garbage.
    Raises CheckpointError, naming the official key, for anything missing, unknown or misshaped; ValueError if the
    width does not split into n_heads.
    """
    what = "ARPG"
    state = unwrap(state_dict)
    n_rows, width = shape(state, "embeddings.weight", 2, what)
    vocab, _ = shape(state, "head.weight", 2, what)
    mlp_width, _ = shape(state, "layers.self_dec.0.ffn.w1.weight", 2, what)
    n_self, n_cross = count(state, "layers.self_dec"), count(state, "layers.cross_dec")
    if n_rows < vocab + 4:
        raise CheckpointError(f"{what}: 'embeddings.weight' has {n_rows} rows, expected {vocab} codes and 4 at least")
    if n_self != n_cross:
        raise CheckpointError(f"{what}: has {n_self} layers in self_dec and {n_cross} in cross_dec, expected as many")
    with torch.device("meta"):
        model = ARPG(width, 2 * n_self, n_heads, mlp_width, vocab, n_rows - vocab - 3, grid)
    return fill(model, state, lambda key: [key], what)


def linear(cfg: float) -> Callable[[Plan, int], float]:
    """Guidance that grows with the share of tokens drawn, up to cfg at the last step: a scale for `generate`."""
    return lambda plan, s: 1 + (cfg - 1) * plan.starts[s + 1] / plan.n


class OneTable(nn.Module):
    """What ARPG and RAR have in common: codes, mask, classes and null class are rows of one table, in this order.

    Tokens are (B, N) long by position. Labels are (B,) long in 0 .. n_classes, of which the last is the null class.
    """

    embeddings: nn.Embedding
    head: CategoricalHead

    def __init__(self, vocab: int, n_classes: int, grid: tuple[int, int]):
        super().__init__()
        self.vocab, self.n_classes, self.grid = vocab, n_classes, tuple(grid)
        self.n_tokens = grid[0] * grid[1]

    def hidden(
        self,
        tokens: Tensor,
        label: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states of the slots of steps lo .. hi-1, (B, T, D), from all tokens of the steps before.

        tokens: (B, N), by slot; those that are not known yet may hold anything. hi: all steps by default.
        cache: what it holds is not computed again, and what is computed goes into it.
        """
        raise NotImplementedError

    def logits(self, tokens: Tensor, label: Tensor, plan: Plan) -> Tensor:
        """Teacher-forced: (B, N) tokens by position -> (B, N, V) float32 by slot of the plan."""
        self.check(tokens, label, plan)
        return self.head.logits(self.hidden(plan.permute(tokens), label, plan))

    def forward(self, tokens: Tensor, label: Tensor, plan: Plan, p_drop: float = 0.1) -> Tensor:
        """The training loss, (): mean cross-entropy in nats per token, each label forgotten with probability p_drop."""
        self.check(tokens, label, plan)
        forgotten = torch.rand(label.shape, device=label.device) < p_drop
        target = plan.permute(tokens)
        h = self.hidden(target, label.masked_fill(forgotten, self.n_classes), plan)
        return self.head.loss(h, target).mean()

    def check(self, tokens: Tensor, label: Tensor, plan: Plan, wait: bool = False) -> None:
        """Raise unless the model can be trained on this. wait: look at the values on a GPU, too."""
        self.head.check(tokens, wait)
        self.check_label(label, wait)
        if tokens.shape != (len(label), self.n_tokens):
            raise ValueError(f"tokens must be {(len(label), self.n_tokens)} for these labels, got {(*tokens.shape,)}")
        self.check_plan(plan, len(label))

    def check_label(self, label: Tensor, wait: bool = False) -> None:
        check_ids("label", label, self.n_classes + 1, 1, wait)

    def check_plan(self, plan: Plan, batch: int) -> None:
        """Raise unless the plan covers the grid, and has an order for each row of the batch or one for all."""
        if plan.n != self.n_tokens:
            raise ValueError(f"the plan has {plan.n} slots, the model's images have {self.n_tokens} tokens")
        if plan.pos.dim() == 2 and len(plan.pos) != batch:
            raise ValueError(f"the plan has orders for a batch of {len(plan.pos)}, got a batch of {batch}")

    def class_row(self, label: Tensor) -> Tensor:
        """Where in the table the classes stand, behind the codes and the mask: (B,) -> (B, 1)."""
        return self.vocab + 1 + label[:, None]

    @torch.no_grad()
    def follow(self, label: Tensor, plan: Plan, cfg: Scale, cache: KVCache | None, **knobs) -> Tensor:
        """Draw (B, N) tokens by position for (B,) labels, step by step."""
        self.check_label(label, wait=True)
        self.check_plan(plan, len(label))
        tokens = self.head.empty(len(label), self.n_tokens)
        label, plan = label.to(tokens.device), plan.to(tokens.device)
        for s in range(plan.n_steps):
            tokens[:, plan.span(s)] = self._draw(tokens, label, plan, s, cfg, cache, **knobs)
        return plan.unpermute(tokens)

    def _draw(
        self, tokens: Tensor, label: Tensor, plan: Plan, s: int, cfg: Scale, cache: KVCache | None, **knobs
    ) -> Tensor:
        if not is_guided(cfg):
            return self.head.sample(self.hidden(tokens, label, plan, s, s + 1, cache), **knobs)
        scale = cfg(plan, s) if callable(cfg) else cfg
        check_number("cfg", scale, 0)
        both = torch.cat([label, torch.full_like(label, self.n_classes)])
        h, h_null = self.hidden(tokens.repeat(2, 1), both, plan.repeat(2), s, s + 1, cache).chunk(2)
        return self.head.sample(h, h_null, scale, **knobs)


class SelfAttention(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Mask, rope: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        q, k, v = (split(to(x), self.n_heads) for to in (self.to_q, self.to_k, self.to_v))
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.put(layer, k, v)
        return self.proj(join(attend(q, k, v, mask)))


class CrossAttention(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Mask, rope: Tensor) -> Tensor:
        """x: (B, T, D) queries; k, v: (B, H, S, hd), the same in all layers."""
        return self.proj(join(attend(rotate(split(self.to_q(x), self.n_heads), rope), k, v, mask)))


class FeedForward(nn.Module):
    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.w1 = nn.Linear(width, mlp_width, bias=False)
        self.w3 = nn.Linear(width, mlp_width, bias=False)
        self.w2 = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, attn: nn.Module, width: int, mlp_width: int):
        super().__init__()
        self.attn = attn
        self.ffn = FeedForward(width, mlp_width)
        self.attn_norm = nn.RMSNorm(width, eps=1e-5)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-5)

    def forward(self, x: Tensor, *how) -> Tensor:
        x = x + self.attn(self.attn_norm(x), *how)
        return x + self.ffn(self.ffn_norm(x))


class TwoPasses(nn.Module):
    """The reading half, one pair of keys and values of its last states, and the asking half."""

    def __init__(self, width: int, n_layers: int, n_heads: int, mlp_width: int):
        super().__init__()
        self.n_heads, m = n_heads, n_layers // 2
        self.self_dec = nn.ModuleList(Layer(SelfAttention(width, n_heads), width, mlp_width) for _ in range(m))
        self.cross_dec = nn.ModuleList(Layer(CrossAttention(width, n_heads), width, mlp_width) for _ in range(m))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)

    def read(self, x: Tensor, mask: Mask, rope: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """x: (B, T, D), the new slots. Returns the shared keys and values of all slots: (B, H, S, hd) twice."""
        for i, layer in enumerate(self.self_dec):
            x = layer(x, mask, rope, cache, i)
        x = self.norm(x)
        k, v = rotate(split(self.to_k(x), self.n_heads), rope), split(self.to_v(x), self.n_heads)
        if cache is not None:
            k, v = cache.put(len(self.self_dec), k, v)
            cache.advance(x.shape[1])
        return k, v

    def ask(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, rope: Tensor) -> Tensor:
        """q: (B, T, D), one query per place; k, v: what `read` returned. Returns (B, T, D)."""
        for layer in self.cross_dec:
            q = layer(q, k, v, mask, rope)
        return q


class ARPG(OneTable):
    """n_layers: both halves together. mlp_width: of the feed-forward layers. grid: (h, w) tokens, N = h * w.

    The table has a row more than OneTable says, which the official code keeps for another kind of guidance.
    It is not registered with minar.lab.checkpoint, where the name ARPG stands for minar.papers.arpg.
    Raises ValueError if the width does not split into n_heads of a multiple of 4 channels.
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
        if n_heads < 1 or width % n_heads or (width // n_heads) % 4:
            raise ValueError(f"width {width} must split into {n_heads} heads of a multiple of 4 channels")
        if n_layers < 2 or n_layers % 2:
            raise ValueError(f"n_layers must be even, half to read and half to ask, got {n_layers}")
        self.width, self.n_layers, self.n_heads, self.mlp_width = width, n_layers, n_heads, mlp_width
        self.embeddings = nn.Embedding(vocab + n_classes + 3, width)
        self.layers = TwoPasses(width, n_layers, n_heads, mlp_width)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = CategoricalHead(width, vocab)

    def hidden(
        self,
        tokens: Tensor,
        label: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See OneTable. Tokens of a step are read together and see each other; a query sees the steps before."""
        hi = plan.n_steps if hi is None else hi
        past, end = 0 if cache is None else cache.n, plan.starts[hi - 1]
        check_behind(cached_slots(cache, 1), end)
        asked = slice(plan.starts[lo], plan.starts[hi])
        ids = torch.cat([self.class_row(label), tokens[:, :end]], 1)[:, past:]
        reads, asks = masks(plan, past, end, asked)
        own, target = places(plan, past, end, asked)
        k, v = self.layers.read(self.embeddings(ids), reads, self.rope(own), cache)
        queries = self.embeddings.weight[self.vocab].expand(len(ids), len(asks), -1)
        return self.norm(self.layers.ask(queries, k, v, asks, self.rope(target)))

    def rope(self, place: Tensor) -> Tensor:
        return rope_2d(place, self.grid[1], self.width // self.n_heads)

    def generate(
        self,
        label: Tensor,
        sizes: tuple[int, ...],
        cfg: Scale = 1.0,
        order: Tensor | None = None,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
        **knobs,
    ) -> Tensor:
        """Draw an image's tokens for each label: (B,) long -> (B, N) long by position.

        sizes: how many tokens each step draws, N in all (`minar.plan.cosine_sizes`). cfg: guidance, 1 is off; or a
        function of plan and step, as `linear`. order: (N,) or (B, N) long, slot -> position; by default one random
        order for all rows. use_cache=False computes everything anew at every step; the result is the same.
        knobs go to CategoricalHead.sample: temperature, top_k, top_p.
        """
        pos = random_order(*self.grid, generator=generator).pos if order is None else order
        plan = Plan(pos, tuple(sizes))
        cache = KVCache(self.n_tokens + 1 - plan.sizes[-1]) if use_cache else None
        return self.follow(label, plan, cfg, cache, generator=generator, **knobs)


def masks(plan: Plan, past: int, end: int, asked: slice) -> tuple[Tensor, Tensor]:
    """Who looks at whom. Columns: class, slots 0 .. end-1. Rows: those that are new behind `past`; the queries."""
    step = torch.cat([plan.step.new_full((1,), -1), plan.step[:end]])
    return step[past:, None] >= step, plan.step[asked, None] > step


def places(plan: Plan, past: int, end: int, asked: slice) -> tuple[Tensor, Tensor]:
    """Where they stand: new slots where their own token is (the class nowhere), queries where they ask for one."""
    own = F.pad(plan.at(slice(0, end)), (1, 0), value=-1)
    return own[..., past:], plan.at(asked)


def split(x: Tensor, n_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, hd)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join(x: Tensor) -> Tensor:
    """(B, H, T, hd) -> (B, T, D)."""
    return x.transpose(1, 2).flatten(2)
