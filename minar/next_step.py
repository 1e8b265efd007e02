"""Next-step prediction: a slot reads a token of the step before and predicts its own. GPT, PAR, sigma-GPT and RAR.

With the raster plan this is `GPT`, weight for weight.
"""

import torch
from torch import Tensor

from minar.cache import KVCache
from minar.model import ARModel, before, cached_slots, check_behind
from minar.plan import Plan


class NextStepAR(ARModel):
    """Slots of the first step read the condition, slot j of a later one reads slot j mod n of the n before it.

    Two slots may read the same token: only `target` makes them differ. Rotary angles say where the token that is read
    stands, as in LlamaGen and PAR. The cache holds the slots, and in front of them all of the prefix but its last
    vector, which the first step reads.
    """

    def read(self, tokens: Tensor, prefix: Tensor, plan: Plan, slots: slice) -> tuple[Tensor, Tensor]:
        """What T slots read, (B, T, D), and the rotary angles of where that stands."""
        source = plan.reads_from[slots]  # (T,), -1: the condition
        content = self.embed(tokens[:, source])
        if slots.start < plan.starts[1]:  # slots of the first step: -1 has picked some token, which is not looked at
            content = torch.where(source[:, None] < 0, prefix[:, -1:], content)
        return content + self.target(plan.at(slots)), self.rope(plan.at(source))

    def hidden(
        self,
        tokens: Tensor,
        prefix: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See ARModel."""
        n_mute = prefix.shape[1] - 1
        a, b = cached_slots(cache, n_mute), plan.starts[plan.n_steps if hi is None else hi]
        check_behind(a, plan.starts[lo])
        x, rope = self.read(tokens, prefix, plan, slice(a, b))
        if n_mute and not a:
            x, rope = torch.cat([prefix[:, :-1], x], 1), before(rope, n_mute)
        h = self.trunk(x, plan.mask(a, b, n_mute), rope, cache)
        return h[:, plan.starts[lo] - b :]

    def check_plan(self, plan: Plan, batch: int) -> None:
        """See ARModel; and no step may be smaller than the one before: some of its tokens would never be read."""
        super().check_plan(plan, batch)
        if plan.reads_from is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} needs steps that do not shrink, got sizes {plan.sizes}: use AnyOrderAR or MaskedAR"
            )
