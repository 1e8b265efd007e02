"""ARPG: one half reads what is known, the other half only asks, so that a cache needs little more than half.

The content half is a plain transformer over the known tokens. What it found is turned into keys and values once, and
all layers of the asking half look at the same ones. An ask knows nothing but its place, and nobody ever sees it.

Li et al., "Autoregressive Image Generation with Randomized Parallel Decoding", 2025.
"""

import torch
from torch import Tensor, nn

from minar.cache import KVCache
from minar.lab.checkpoint import register
from minar.model import ARModel, before, cached_slots, check_behind
from minar.plan import Plan
from minar.transformer import Mask, SwiGLU, Transformer, attend, rotate


class CrossBlock(nn.Module):
    """A block without keys and values of its own."""

    def __init__(self, width: int, n_heads: int, hidden: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.q = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Mask, rope: Tensor) -> Tensor:
        """x: (B, T, D), the asks; k, v: (B, H, S, hd), of what is known. Returns (B, T, D)."""
        q = rotate(self.q(self.norm1(x)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), rope)
        x = x + self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


@register
class ARPG(ARModel):
    """trunk: the content half, of m layers. n_cross: layers of the asking half; the paper takes m.

    A known slot sees the prefix and all slots of its step and before; an ask sees the prefix and the slots of earlier
    steps. The cache holds keys and values of m layers and one shared pair: (m + 1) / 2m of a GPT of 2m layers.
    The paper has no `target`: there it stays zero, and in a first step of several tokens all draw from the same
    distribution, since nothing that stands anywhere is known yet.
    """

    def __init__(
        self,
        trunk: Transformer,
        embed: nn.Module,
        cond: nn.Module,
        head: nn.Module,
        grid: tuple[int, int],
        n_cross: int,
    ):
        super().__init__(trunk, embed, cond, head, grid)
        if n_cross < 1:
            raise ValueError(f"the asking half needs at least one layer, got n_cross={n_cross}")
        self.n_cross = n_cross
        self.blank = nn.Parameter(torch.randn(trunk.width) * 0.02)
        self.kv = nn.Linear(trunk.width, 2 * trunk.width, bias=False)
        self.cross = nn.ModuleList(CrossBlock(trunk.width, trunk.n_heads, trunk.hidden) for _ in range(n_cross))
        self.norm = nn.RMSNorm(trunk.width, eps=1e-5)
        for linear in (self.kv, *(m for m in self.cross.modules() if isinstance(m, nn.Linear))):
            nn.init.normal_(linear.weight, std=0.02)

    def hidden(
        self,
        tokens: Tensor,
        prefix: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See ARModel. The last step asked for is not read: nobody is there to see it."""
        hi = plan.n_steps if hi is None else hi
        P, a, b = prefix.shape[1], cached_slots(cache, prefix.shape[1]), plan.starts[hi - 1]
        check_behind(a, b)
        x, rope = self.embed(tokens[:, a:b]), self.rope(plan.at(slice(a, b)))
        if cache is None or cache.n == 0:
            x, rope = torch.cat([prefix, x], 1), before(rope, P)
        mask, n_new = plan.mask(a, b, P), x.shape[1]
        if isinstance(mask, Tensor):
            mask = mask[len(mask) - n_new :]  # the prefix may be cached already, when no slot is
        k, v = self.content(x, mask, rope, cache)
        asked = slice(plan.starts[lo], plan.starts[hi])
        return self.ask(plan.at(asked), k, v, None if hi == lo + 1 else self._earlier(plan, P, b, asked))

    def _earlier(self, plan: Plan, P: int, b: int, asked: slice) -> Tensor:
        """Rows: the slots asked for. Columns: prefix, slots 0 .. b-1; those of earlier steps are seen."""
        return plan.step[asked, None] > torch.cat([plan.step.new_full((P,), -1), plan.step[:b]])

    def content(self, x: Tensor, mask: Mask, rope: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """The n new known slots, (B, n, D) -> shared keys and values of all S slots known, (B, H, S, hd) each."""
        h = self.trunk(x, mask, rope, cache, keep=0)  # not kept before the shared pair has been put beside them
        k, v = self.kv(h).unflatten(-1, (2, self.trunk.n_heads, -1)).permute(2, 0, 3, 1, 4)
        k = rotate(k, rope)
        if cache is not None:
            k, v = cache.put(self.trunk.n_layers, k, v)
            cache.advance(x.shape[1])
        return k, v

    def ask(self, place: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Hidden states of asks for T places, (T,) or (B, T) -> (B, T, D). They do not see each other."""
        x, rope = (self.blank + self.target(place)).expand(len(k), -1, -1), self.rope(place)
        for block in self.cross:
            x = block(x, k, v, mask, rope)
        return self.norm(x)
