"""What all models that follow a plan share: the loss, and one step of sampling.

Training is prefilling the whole image; decoding is prefilling one step. Both are `hidden`, which each family writes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minar.cache import KVCache
from minar.checks import check_number
from minar.plan import Plan
from minar.transformer import Transformer, rope_2d

Scale = float | Callable[[Plan, int], float]  # of guidance: one number, or a function of the plan and the step


def is_guided(cfg: Scale) -> bool:
    """Does this scale need the null condition beside the condition?"""
    return callable(cfg) or cfg != 1


class ARModel(nn.Module):
    """trunk: any Transformer. embed: tokens -> width. cond: ClassLabel or TextPrefix. head: CategoricalHead, or one
    with its loss, sample, empty and check. grid: (h, w) tokens, N = h * w.

    Tokens are (B, N) long, or (B, N, C) float if embed and head say so. Each slot is told where its token will go
    (`target`, which starts at zero).
    """

    cached = True  # can the keys and values of a step be kept?

    def __init__(self, trunk: Transformer, embed: nn.Module, cond: nn.Module, head: nn.Module, grid: tuple[int, int]):
        super().__init__()
        self.trunk, self.embed, self.cond, self.head, self.grid = trunk, embed, cond, head, tuple(grid)
        self.n_tokens = grid[0] * grid[1]
        self.target = nn.Embedding(self.n_tokens, trunk.width)
        nn.init.zeros_(self.target.weight)

    def prefix(self, cond: Tensor, guided: bool = False) -> Tensor:
        """The condition as vectors: (B, P, D), or (2B, P, D) for guidance, the null condition in the second half."""
        return self.cond(torch.cat([cond, self.cond.null(cond)]) if guided else cond)

    def hidden(
        self,
        tokens: Tensor,
        prefix: Tensor,
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

    def nll(self, tokens: Tensor, cond: Tensor, plan: Plan, inputs: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of each token given the steps before, in nats: (B, N) by position -> (B, N) by slot.

        inputs: what the slots read instead of the tokens themselves, also by position (noised, say).
        """
        self.check(tokens, cond, plan)
        target = plan.permute(tokens)
        read = target if inputs is None else plan.permute(inputs)
        return self.head.loss(self.hidden(read, self.prefix(cond), plan), target)

    def forward(
        self, tokens: Tensor, cond: Tensor, plan: Plan, p_drop: float = 0.1, inputs: Tensor | None = None
    ) -> Tensor:
        """The training loss, (): mean nll with each condition forgotten with probability p_drop."""
        self.check(tokens, cond, plan)
        return self.nll(tokens, self.cond.drop(cond, p_drop), plan, inputs).mean()

    def draw(
        self,
        tokens: Tensor,
        prefix: Tensor,
        plan: Plan,
        s: int,
        cache: KVCache | None = None,
        cfg: Scale = 1.0,
        **knobs,
    ) -> Tensor:
        """The tokens of step s, (B, T). tokens: (B, N), by slot. With a guided prefix, 2B rows run through the model.

        knobs go to the head's sample: temperature, top_k, top_p, generator.
        """
        h, h_null = self.hidden_pair(tokens, prefix, plan, s, s + 1, cache)
        if h_null is None:
            return self.head.sample(h, **knobs)
        scale = cfg(plan, s) if callable(cfg) else cfg
        check_number("cfg", scale, 0)
        return self.head.sample(h, h_null, scale, **knobs)

    def hidden_pair(
        self, tokens: Tensor, prefix: Tensor, plan: Plan, lo: int, hi: int, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden` with the condition and, for a guided prefix of 2B rows, without it; else None."""
        if len(prefix) == len(tokens):
            return self.hidden(tokens, prefix, plan, lo, hi, cache), None
        return self.hidden(torch.cat([tokens, tokens]), prefix, plan.repeat(2), lo, hi, cache).chunk(2)

    def rope(self, place: Tensor) -> Tensor:
        """Rotary angles of (..., T) places on the grid; -1 stands nowhere."""
        return rope_2d(place, self.grid[1], self.trunk.width // self.trunk.n_heads)

    def check(self, tokens: Tensor, cond: Tensor, plan: Plan | None = None, wait: bool = False) -> None:
        """Raise unless the model can be trained on this. wait: look at the values on a GPU, too."""
        self.cond.check(cond, wait)
        self.head.check(tokens, wait)
        if len(cond) != len(tokens):
            raise ValueError(f"one condition per row of tokens: got {len(cond)} for {len(tokens)} rows")
        if tokens.shape[1] != self.n_tokens:
            raise ValueError(f"an image has {self.n_tokens} tokens, got {tokens.shape[1]} per row")
        if plan is not None:
            self.check_plan(plan, len(tokens))

    def check_plan(self, plan: Plan, batch: int) -> None:
        """Raise unless the plan covers this model's grid, and has an order for each row of the batch or one for all."""
        if plan.n != self.n_tokens:
            raise ValueError(f"the plan has {plan.n} slots, the model's images have {self.n_tokens} tokens")
        if plan.pos.dim() == 2 and len(plan.pos) != batch:
            raise ValueError(f"the plan has orders for a batch of {len(plan.pos)}, got a batch of {batch}")


def cached_slots(cache: KVCache | None, n_before: int) -> int:
    """How many slots the cache holds behind n_before vectors of the prefix."""
    return 0 if cache is None or cache.n == 0 else cache.n - n_before


def check_behind(cached: int, first: int) -> None:
    """Raise if slot `first` is asked for, but was computed before."""
    if cached > first:
        raise ValueError(f"the cache holds {cached} slots, so slot {first} was computed before: lower cache.n")


def before(rope: Tensor, n: int) -> Tensor:
    """Angles of n vectors that stand nowhere, then those given: (..., T, hd/2, 2) -> (..., n + T, hd/2, 2)."""
    return torch.cat([rope.new_zeros(*rope.shape[:-3], n, *rope.shape[-2:]), rope], -3)
