"""Blockwise parallel decoding: guess some tokens ahead, let the model check them all in one pass, keep what holds.

Extra heads guess the tokens that come after the next one. The pass that checks the guesses also gives the hidden state
from which the next ones are guessed. In exact mode the tokens are those of greedy decoding, in fewer passes.

Stern, Shazeer, Uszkoreit, "Blockwise Parallel Decoding for Deep Autoregressive Models", 2018.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minar.cache import KVCache
from minar.lab.checkpoint import register
from minar.model import ARModel
from minar.plan import Plan


def exact(logits: Tensor, guess: Tensor) -> Tensor:
    """Accept what greedy decoding would have drawn. logits: (B, T, V); guess: (B, T). Returns (B, T) bool."""
    return guess == logits.argmax(-1)


def among(n: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Accept the n likeliest tokens: fewer passes, and no longer the greedy image."""
    return lambda logits, guess: (logits.topk(n, -1).indices == guess[..., None]).any(-1)


@register
class Blockwise(nn.Module):
    """n_ahead guessing heads on a trained model, which stays as it is. Head j guesses token i + j from slot i."""

    def __init__(self, model: ARModel, n_ahead: int, hidden: int):
        super().__init__()
        self.model, self.n_ahead, self.hidden = model.requires_grad_(False), n_ahead, hidden
        width = model.trunk.width
        self.guessers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width)) for _ in range(n_ahead)
        )

    def guess(self, h: Tensor, j: int) -> Tensor:
        """What head j = 1 .. n_ahead gives the model's own head to read: (B, T, D) -> (B, T, D)."""
        return h + self.guessers[j - 1](h)

    def forward(self, tokens: Tensor, cond: Tensor, plan: Plan, p_drop: float = 0.1) -> Tensor:
        """The mean loss of all guessing heads, ()."""
        self.check(tokens, cond, plan)
        x = plan.permute(tokens)
        h = self.model.hidden(x, self.model.prefix(self.model.cond.drop(cond, p_drop)), plan)
        losses = [self.model.head.loss(self.guess(h[:, :-j], j), x[:, j:]).mean() for j in range(1, self.n_ahead + 1)]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def decode(
        self, cond: Tensor, plan: Plan, cfg: float = 1.0, accept: Callable[[Tensor, Tensor], Tensor] = exact
    ) -> tuple[Tensor, list[int]]:
        """Greedy decoding: (B, N) tokens by position, and how many of them each pass has settled.

        Rows share one cache, so a pass settles what all rows accept: for the figures of one image use one row.
        """
        model, plan = self.model, plan.to(self.model.target.weight.device)
        self.check_plan(plan, len(cond))
        tokens = model.head.empty(len(cond), plan.n)
        prefix = model.prefix(cond.to(tokens.device), guided=cfg != 1)
        cache, settled, n, ahead = KVCache(prefix.shape[1] + plan.n + self.n_ahead), [], 0, 0
        while n < plan.n:
            end = min(n + ahead + 1, plan.n)  # the slots that read a settled token or a guess
            h = model.hidden_pair(tokens, prefix, plan, n, end, cache)
            logits = model.head.logits(*h, cfg)
            held = accept(logits, tokens[:, n:end])[:, :-1].cumprod(1)  # 1 up to the first guess that fails
            m = int(held.sum(1).min())
            tokens[:, n + m] = torch.where(
                held.sum(1) > m, tokens[:, n + m], logits[:, m].argmax(-1)
            )  # where a guess fails, the model's own choice stands there: a pass never settles less than one token
            cache.n -= end - n - (m + 1)
            settled.append(m + 1)
            n += m + 1
            ahead = min(self.n_ahead, plan.n - n)
            for j in range(1, ahead + 1):
                guessed = [None if x is None else self.guess(x[:, m : m + 1], j) for x in h]
                tokens[:, n + j - 1] = model.head.logits(*guessed, cfg)[:, 0].argmax(-1)
        return plan.unpermute(tokens), settled

    def check(self, tokens: Tensor, cond: Tensor, plan: Plan | None = None, wait: bool = False) -> None:
        """Raise unless the guessing heads can be trained on this."""
        self.model.check(tokens, cond, plan, wait)
        if plan is not None:
            self.check_plan(plan, len(tokens))

    def check_plan(self, plan: Plan, batch: int) -> None:
        """Raise unless the plan draws one token a step: only then is there something to guess."""
        self.model.check_plan(plan, batch)
        plan.check_one_by_one()
