"""ARDM: how well a model that draws in any order knows the rest of an image, and the best steps for so many passes.

A token costs more bits the fewer others are known, whichever they are. Measured once, that curve prices every way to
cut N tokens into steps, and dynamic programming finds the cheapest. Trained as MaskedAR trains, or AnyOrderAR with
random orders.

Hoogeboom et al., "Autoregressive Diffusion Models", 2022; the steps are its "Parallelized ARDMs".
"""

import math

import torch
from torch import Tensor

from minar.checks import check_number
from minar.model import ARModel
from minar.plan import Plan, random_order


@torch.no_grad()
def loss_curve(
    model: ARModel, tokens: Tensor, cond: Tensor, orders: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Expected nll, in nats, of a token still hidden when t = 0 .. N-1 random others are known: (N,).

    tokens: (B, N) by position. orders: how many random orders are tried for each row, 1 or more. Costs N passes each:
    at each t the mean over all that is hidden counts. The sum estimates the nll of an image, one token a step.
    """
    check_number("orders", orders, 1)
    model.check(tokens, cond)
    prefix, sums = model.prefix(cond), torch.zeros(model.n_tokens, device=tokens.device)
    for _ in range(orders):
        pos = random_order(*model.grid, len(tokens), generator).pos.to(tokens.device)
        for t in range(model.n_tokens):
            plan = Plan(pos, (1,) * t + (model.n_tokens - t,))  # the last step asks for all that is hidden
            x = plan.permute(tokens)
            sums[t] += model.head.loss(model.hidden(x, prefix, plan, t, t + 1), x[:, t:]).mean()
    return sums / orders


def schedule(losses: Tensor, budget: int) -> tuple[int, ...]:
    """The sizes of `budget` steps, 1 .. N, that lose the fewest nats. They add up to N.

    losses: (N,), what a token costs with t known (`loss_curve`). n tokens drawn at once at t cost n * losses[t].
    Exact, in O(budget N^2): the cheapest way to e tokens ends with a step from some s < e. Exact for the curve given:
    one from few rows puts long steps where it is low by chance, and equal steps may then cost less.
    """
    if losses.dim() != 1:
        raise ValueError(f"losses must be (N,), one for each number of known tokens, got {tuple(losses.shape)}")
    if not losses.isfinite().all():
        raise ValueError(f"losses must be finite, got {losses[~losses.isfinite()][0]:.0f}")
    N = len(losses)
    if not 1 <= budget <= N:
        raise ValueError(f"{N} tokens can be drawn in 1 to {N} steps, not in {budget}")
    size = torch.arange(N + 1) - torch.arange(N)[:, None]  # (N, N + 1): from s known to e known
    cost = torch.where(size > 0, size * losses.cpu().double()[:, None], torch.inf)
    best, came_from = torch.tensor([0.0] + [math.inf] * N, dtype=torch.float64), []
    for _ in range(budget):
        best, source = (best[:-1, None] + cost).min(0)
        came_from.append(source.tolist())
    sizes, end = [], N
    for source in reversed(came_from):
        sizes.append(end - source[end])
        end = source[end]
    return tuple(reversed(sizes))


@torch.no_grad()
def bits(
    model: ARModel,
    tokens: Tensor,
    cond: Tensor,
    orders: int = 1,
    sizes: tuple[int, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """-log2 p of each image, averaged over `orders` random orders: (B, N) -> (B,).

    sizes: the steps, by default one token each. It bounds from above what the mixture of all orders would need
    (Jensen); tokens of one step count as independent. For bits per pixel divide by the pixels.
    """
    check_number("orders", orders, 1)
    sizes, total = sizes or (1,) * model.n_tokens, torch.zeros(len(tokens), device=tokens.device)
    for _ in range(orders):
        plan = Plan(random_order(*model.grid, len(tokens), generator).pos.to(tokens.device), sizes)
        total += model.nll(tokens, cond, plan).sum(1)
    return total / (orders * math.log(2))
