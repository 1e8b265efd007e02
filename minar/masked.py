"""Masked prediction: blanks stand where a token is not known, and everything looks at everything. MaskGIT, MaskGIL.

Each new token changes what every other slot sees, so nothing can be cached.
"""

import torch
from torch import Tensor, nn

from minar.cache import KVCache
from minar.model import ARModel, before
from minar.plan import Plan
from minar.transformer import Transformer


class MaskedAR(ARModel):
    """The sequence is [prefix, all N slots]; a slot holds its token, or a blank that is told where it is."""

    cached = False

    def __init__(self, trunk: Transformer, embed: nn.Module, cond: nn.Module, head: nn.Module, grid: tuple[int, int]):
        super().__init__(trunk, embed, cond, head, grid)
        self.blank = nn.Parameter(torch.randn(trunk.width) * 0.02)

    def look(self, tokens: Tensor, prefix: Tensor, plan: Plan, known: Tensor) -> Tensor:
        """Hidden states of all slots, (B, N, D). tokens: (B, N) by slot. known: (N,) or (B, N) bool, by slot."""
        place = plan.pos
        content = torch.where(known[..., None], self.embed(tokens), self.blank) + self.target(place)
        x, P = torch.cat([prefix, content], 1), prefix.shape[1]
        return self.trunk(x, None, before(self.rope(place), P))[:, P:]

    def hidden(
        self,
        tokens: Tensor,
        prefix: Tensor,
        plan: Plan,
        lo: int = 0,
        hi: int | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """See ARModel; but all of steps lo .. hi-1 are predicted from the steps before lo, whatever hi is."""
        if cache is not None:
            raise ValueError("MaskedAR cannot use a cache: each new token changes what all the others see")
        hi = plan.n_steps if hi is None else hi
        known = plan.step < lo
        return self.look(tokens, prefix, plan, known)[:, plan.starts[lo] : plan.starts[hi]]

    def nll(self, tokens: Tensor, cond: Tensor, plan: Plan, inputs: Tensor | None = None) -> Tensor:
        """See ARModel. Needs one pass for each step of the plan."""
        self.check(tokens, cond, plan)
        target, prefix = plan.permute(tokens), self.prefix(cond)
        read = target if inputs is None else plan.permute(inputs)
        steps = [
            self.head.loss(self.hidden(read, prefix, plan, s, s + 1), target[:, plan.span(s)])
            for s in range(plan.n_steps)
        ]
        return torch.cat(steps, 1)

    def forward(
        self, tokens: Tensor, cond: Tensor, plan: Plan, p_drop: float = 0.1, inputs: Tensor | None = None
    ) -> Tensor:
        """The training loss, (): each row is stopped at a random step, and all that is hidden then is guessed.

        A row that stops before a step of n of the N tokens counts K n / N times the mean over its hidden tokens (K
        steps), so that under random orders the expected loss is the mean of `nll`.
        """
        self.check(tokens, cond, plan)
        moment = torch.randint(plan.n_steps, (len(tokens), 1), device=tokens.device)
        known = plan.step < moment  # (B, N)
        target = plan.permute(tokens)
        read = target if inputs is None else plan.permute(inputs)
        h = self.look(read, self.prefix(self.cond.drop(cond, p_drop)), plan, known)
        guessed = (self.head.loss(h, target) * ~known).sum(1) / (~known).sum(1)
        share = (plan.step == moment).sum(1) / plan.n
        return (guessed * share * plan.n_steps).mean()
