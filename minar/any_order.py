"""Any order: one stream reads what is known, a second one asks for the tokens to come. ARPG, RandAR.

A slot that asks knows only where its token will go, so any set of places can be asked for at once, in any order.
"""

import torch
from torch import Tensor, nn

from minar.cache import KVCache
from minar.model import ARModel, before, cached_slots, check_behind
from minar.plan import Plan
from minar.transformer import Transformer


class AnyOrderAR(ARModel):
    """The sequence is [prefix, known slots, asks]. Prefix and known slots are cached, asks never.

    A known slot sees the prefix and all slots of its step and before. An ask sees the prefix, all slots of the steps
    before its own, and itself; never another ask.
    """

    def __init__(self, trunk: Transformer, embed: nn.Module, cond: nn.Module, head: nn.Module, grid: tuple[int, int]):
        super().__init__(trunk, embed, cond, head, grid)
        self.blank = nn.Parameter(torch.randn(trunk.width) * 0.02)

    def read(self, tokens: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        """T known slots: their own tokens, (B, T, D), and the angles of where they stand."""
        return self.embed(tokens[:, slots]), self.rope(plan.at(slots))

    def asks(self, tokens: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        """T slots to come: a blank that is told where it is, (B, T, D), and the angles of that place."""
        place = plan.at(slots)
        return (self.blank + self.target(place)).expand(len(tokens), -1, -1), self.rope(place)

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
        x, rope = self.read(tokens, plan, slice(a, b))
        if cache is None or cache.n == 0:
            x, rope = torch.cat([prefix, x], 1), before(rope, P)
        asked = slice(plan.starts[lo], plan.starts[hi])
        asks, ask_rope = self.asks(tokens, plan, asked)
        n_new = x.shape[1]
        mask = self._mask(plan, P, n_new, b, asked)
        h = self.trunk(torch.cat([x, asks], 1), mask, torch.cat([rope, ask_rope], -3), cache, keep=n_new)
        return h[:, n_new:]

    def _mask(self, plan: Plan, P: int, n_new: int, b: int, asked: slice) -> Tensor:
        """Rows: the n_new last of prefix and slots 0 .. b-1, then the asks. Columns: prefix, slots 0 .. b-1, asks."""
        known = torch.cat([plan.step.new_full((P,), -1), plan.step[:b]])  # (P + b,)
        reads = known[P + b - n_new :, None] >= known
        asks = plan.step[asked, None] > known
        alone = torch.eye(len(asks), dtype=torch.bool, device=known.device)
        unseen = torch.zeros_like(reads[:, :1]).expand(-1, len(asks))
        return torch.cat([torch.cat([reads, unseen], 1), torch.cat([asks, alone], 1)])
