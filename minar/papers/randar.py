"""RandAR: before each token stands an instruction that says where it goes, so a plain causal GPT learns any order.

The sequence is [prefix, P1, x1, P2, x2, ...], and token i is read off at instruction Pi. Several tokens are drawn in
one step by asking several instructions at once. What is kept afterwards is the sequence of training, not the asks.

Pang et al., "RandAR: Decoder-only Autoregressive Visual Generation in Random Orders", 2024.
"""

import torch
from torch import Tensor

from minar.any_order import AnyOrderAR
from minar.cache import KVCache
from minar.lab.checkpoint import register
from minar.model import before, cached_slots, check_behind
from minar.plan import Plan
from minar.transformer import rotate


@register
class RandAR(AnyOrderAR):
    """A causal trunk over prefix and pairs (instruction, token): two entries a slot, so twice the cache of a GPT.

    With one token a step the instructions in the sequence are the asks. In larger steps, asks stand behind the
    sequence: each sees the pairs of earlier steps and itself, and none is kept. Train with one token a step (the paper
    draws an order for each row), decode with any plan, such as `cosine_sizes` in a random order. The paper has no
    `target`: there it stays zero, and the rotated instruction alone says where.
    """

    def asks(self, tokens: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        """T instructions: one learned vector, head by head rotated to the place it asks for. (B, T, D), and angles."""
        place = plan.at(slots)
        rope = self.rope(place)
        blank = self.blank.view(1, self.trunk.n_heads, 1, -1).expand(len(tokens), -1, place.shape[-1], -1)
        return rotate(blank, rope).transpose(1, 2).flatten(2) + self.target(place), rope

    def hidden(
        self,
        tokens: Tensor,
        prefix: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See ARModel. Behind a cache larger steps go one by one: only the asks of one have room there."""
        hi = plan.n_steps if hi is None else hi
        if cache is not None and not cache.layers:  # memory is taken later: room for two entries a slot is free yet
            cache.max_len = max(cache.max_len, prefix.shape[1] + 2 * plan.n)
        if plan.n_steps == plan.n:
            return self._instructed(tokens, prefix, plan, lo, hi, cache)
        if cache is None or hi == lo + 1:
            return self._asked(tokens, prefix, plan, lo, hi, cache)
        return torch.cat([self._asked(tokens, prefix, plan, s, s + 1, cache) for s in range(lo, hi)], 1)

    def _instructed(
        self, tokens: Tensor, prefix: Tensor, plan: Plan, lo: int, hi: int, cache: KVCache | None
    ) -> Tensor:
        """The pass of training: the sequence up to the last instruction asked for.

        The cache keeps one more entry for each slot asked for, as in other families, so that those who guess ahead can
        take them back one by one. Of a single slot that is all.
        """
        first, end = 2 * plan.starts[lo], 2 * plan.starts[hi] - 1
        check_behind(-(-cached_slots(cache, prefix.shape[1]) // 2), plan.starts[lo])
        x, rope = self._sequence(tokens, prefix, plan, end, cache)
        h = self.trunk(x, "causal", rope, cache, keep=x.shape[1] - (hi - lo - 1))
        return h[:, first - end :: 2]

    def _asked(self, tokens: Tensor, prefix: Tensor, plan: Plan, lo: int, hi: int, cache: KVCache | None) -> Tensor:
        """The sequence up to the last step asked for, and behind it asks for all slots of steps lo .. hi-1."""
        last, asked = plan.starts[hi - 1], slice(plan.starts[lo], plan.starts[hi])
        check_behind(-(-cached_slots(cache, prefix.shape[1]) // 2), last)
        x, rope = self._sequence(tokens, prefix, plan, 2 * last, cache)
        asks, ask_rope = self.asks(tokens, plan, asked)
        n_new = x.shape[1]
        mask = self._mask(plan, prefix.shape[1], n_new, 2 * last, asked)
        h = self.trunk(torch.cat([x, asks], 1), mask, torch.cat([rope, ask_rope], -3), cache, keep=n_new)
        return h[:, n_new:]

    def _sequence(
        self, tokens: Tensor, prefix: Tensor, plan: Plan, end: int, cache: KVCache | None
    ) -> tuple[Tensor, Tensor]:
        """What the cache does not hold of the prefix and the first `end` entries: (B, n, D), and angles."""
        P = prefix.shape[1]
        held = cached_slots(cache, P)  # entries; half of a pair may be among them
        slots = slice(held // 2, (end + 1) // 2)
        (token, rope), (instruction, _) = self.read(tokens, plan, slots), self.asks(tokens, plan, slots)
        cut = slice(held - 2 * slots.start, end - 2 * slots.start)
        x = torch.stack([instruction, token], 2).flatten(1, 2)[:, cut]
        rope = rope.repeat_interleave(2, -3)[..., cut, :, :]
        if cache is None or cache.n == 0:
            x, rope = torch.cat([prefix, x], 1), before(rope, P)
        return x, rope

    def _mask(self, plan: Plan, P: int, n_new: int, end: int, asked: slice) -> Tensor:
        """Rows: the n_new last of prefix and entries 0 .. end-1, then the asks. Columns: prefix, entries, asks."""
        step = torch.cat([plan.step.new_full((P,), -1), plan.step[: end // 2].repeat_interleave(2)])
        causal = torch.ones(n_new, P + end, dtype=torch.bool, device=step.device).tril(P + end - n_new)
        asks = plan.step[asked, None] > step
        alone = torch.eye(len(asks), dtype=torch.bool, device=step.device)
        unseen = torch.zeros_like(causal[:, :1]).expand(-1, len(asks))
        return torch.cat([torch.cat([causal, unseen], 1), torch.cat([asks, alone], 1)])
