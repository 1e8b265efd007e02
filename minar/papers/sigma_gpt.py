"""sigma-GPT: draw all that is missing at once, then keep what a random order would have drawn as well.

A NextStepAR under random orders knows where the token that it reads stands (rotary) and which comes next (`target`),
the paper's double position encoding. Train it with `fit(plan=lambda batch, done: random_order(*grid, batch))`. A burst
takes two passes, however many tokens are left: what is each of them if it comes next (p), and what is each, along some
orders, given those before it (q)?

Pannatier, Courdier, Fleuret, "sigma-GPTs: A New Approach to Autoregressive Models", 2024: burst sampling.
"""

import torch
from torch import Tensor

from minar.cache import KVCache
from minar.checks import check_number
from minar.model import before, cached_slots
from minar.next_step import NextStepAR
from minar.plan import Plan
from minar.sampling import race


@torch.no_grad()
def decode(
    model: NextStepAR,
    cond: Tensor,
    n_orders: int = 5,
    cfg: float = 1.0,
    generator: torch.Generator | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    order: Tensor | None = None,
    redraw: bool = False,
) -> tuple[Tensor, int]:
    """One image, (1, N) tokens by position, and how many passes it took. cond: its condition, a batch of one.

    known: (N,) bool and (N,) tokens by position; where it is True the token is given and stays. order: (N,) positions,
    one of the n_orders that each burst tries; the others are random. One image at a time: images settle other places
    and other numbers of tokens, so they can share neither an order nor a cache.

    The paper's rule (redraw=False) leaves the first token that fails to the next burst, which asks as if nothing had
    failed. That is not exact, even with one order: what p likes better than q comes too often. redraw=True draws it
    from max(0, q - p) at once, as speculative decoding does. Then n_orders=1 is exact: tokens one after the other along
    a random order. Keeping the longest of several orders is not, under either rule: it favours tokens that pass.
    """
    pos, image, n = start(model, cond, known, order, generator)
    check_number("n_orders", n_orders, 1)
    check_number("cfg", cfg, 0)
    prefix, passes = model.prefix(cond.to(pos.device), guided=cfg != 1), 0
    cache = KVCache(prefix.shape[1] + n_orders * model.n_tokens)
    while n < model.n_tokens:
        p = probabilities(model, image, prefix, each_next(pos, n), n, n + 1, cache, cfg)[:, 0]
        image[0, pos[n:]] = draft = race(p, generator)
        turns = draw_turns(pos[n:], n_orders, order, generator)
        orders = torch.cat([pos[:n].expand(n_orders, -1), pos[n:][turns]], 1)
        q = probabilities(model, image, prefix, orders, n, model.n_tokens, cache, cfg)
        kept = verify(draft[turns], p[turns], q, generator)
        best, m = kept.argmax(), int(kept.max())
        pos, n, passes = orders[best], n + m, passes + 2
        if redraw and n < model.n_tokens:
            image[0, pos[n]] = race((q[best, m] - p[turns[best, m]]).clamp_min(0), generator)
            n += 1
    return image, passes


def verify(draft: Tensor, p: Tensor, q: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """How many tokens in front of each order pass, (K,) long: at least one, since p and q are the same there.

    draft: (K, T), drawn from p. p, q: (K, T, V). A token x passes with probability min(1, q(x) / p(x)).
    """
    px, qx = (d.gather(-1, draft[..., None])[..., 0] for d in (p, q))
    passes = torch.rand(draft.shape, generator=generator, device=draft.device) * px < qx
    passes[:, 0] = True
    return passes.long().cumprod(1).sum(1)


def probabilities(
    model: NextStepAR, image: Tensor, prefix: Tensor, orders: Tensor, n: int, end: int, cache: KVCache, cfg: float
) -> Tensor:
    """The distributions of slots n .. end-1 along K orders that agree on the first n, in one pass: (K, end - n, V).

    The orders stand side by side: each sees the n settled slots and itself, and no other. Only settled slots stay in
    the cache. image: (1, N) by position. prefix: (1, P, D), or (2, P, D) for guidance. orders: (K, N).
    """
    B, K, n_mute, plan = len(prefix), len(orders), prefix.shape[1] - 1, Plan(orders, (1,) * orders.shape[1])
    x = plan.permute(image.expand(K, -1))
    asks, ask_rope = model.read(x.repeat(B, 1), prefix.repeat_interleave(K, 0), plan.repeat(B), slice(n, end))
    settled = slice(cached_slots(cache, n_mute), n)
    reads, rope = model.read(x[:1].expand(B, -1), prefix, Plan(orders[0], plan.sizes), settled)
    if cache.n == 0:
        reads, rope = torch.cat([prefix[:, :-1], reads], 1), before(rope, n_mute)
    n_new = reads.shape[1]
    mask = side_by_side(n_mute, n, n_new, K, end - n).to(orders.device)
    rope = torch.cat([rope, ask_rope[:K].flatten(0, 1)])
    h = model.trunk(torch.cat([reads, asks.unflatten(0, (B, K)).flatten(1, 2)], 1), mask, rope, cache, keep=n_new)
    return model.head.logits(*h[:, n_new:].chunk(B), cfg=cfg)[0].softmax(-1).unflatten(0, (K, -1))


def side_by_side(n_mute: int, n: int, n_new: int, K: int, T: int) -> Tensor:
    """The mask. Columns: mute vectors, n settled slots, T slots of each of K orders. Rows: the same, but of the mute
    and settled ones only the n_new last, which are not in the cache yet.
    """
    turn = torch.cat([torch.full((n_mute,), -1), torch.arange(n), torch.arange(n, n + T).repeat(K)])
    group = torch.cat([torch.zeros(n_mute + n), torch.arange(1, K + 1).repeat_interleave(T)])  # 0: settled
    mask = (turn[:, None] >= turn) & ((group == 0) | (group[:, None] == group))
    return mask[n_mute + n - n_new :]


def each_next(pos: Tensor, n: int) -> Tensor:
    """Orders in which each position that is left comes next: (N,) -> (N - n, N)."""
    r = torch.arange(len(pos) - n, device=pos.device)
    orders = pos.repeat(len(r), 1)
    orders[r, n + r] = pos[n]
    orders[:, n] = pos[n:]
    return orders


def draw_turns(left: Tensor, n_orders: int, order: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Which of the T positions left comes when: (n_orders, T), random, but the first follows `order` where given."""
    turns = torch.rand(n_orders, len(left), generator=generator, device=left.device).argsort(-1)
    if order is not None:
        turns[0] = order.to(left.device).argsort()[left].argsort()
    return turns


def start(
    model: NextStepAR,
    cond: Tensor,
    known: tuple[Tensor, Tensor] | None,
    order: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, int]:
    """An order with what is known in front, (N,); an image that holds it, (1, N); and how many tokens that is."""
    if not isinstance(model, NextStepAR):
        raise TypeError(f"burst sampling needs a NextStepAR, got {type(model).__name__}")
    model.cond.check(cond, wait=True)
    if len(cond) != 1:
        raise ValueError(f"burst sampling draws one image at a time, got {len(cond)} conditions")
    image = model.head.empty(1, model.n_tokens)
    if order is None:
        order = torch.rand(model.n_tokens, generator=generator, device=image.device).argsort()
    if order.dim() != 1:
        raise ValueError(f"one image has one order, (N,): got {tuple(order.shape)}")
    model.check_plan(Plan(order.cpu(), (1,) * len(order)), 1)
    if known is None:
        return order.to(image.device), image, 0
    given, tokens = (x.to(image.device) for x in known)
    if given.dtype != torch.bool or not given.shape == tokens.shape == image[0].shape:
        shapes = f"{given.dtype} {tuple(given.shape)} and {tuple(tokens.shape)}"
        raise ValueError(f"known must be ({model.n_tokens},) bool and as many tokens, got {shapes}")
    if given.all():
        raise ValueError("all tokens are known: there is nothing to draw")
    image = torch.where(given, tokens, image)
    model.head.check(image, wait=True)
    order = order.to(image.device)
    return order[(~given[order]).long().argsort(stable=True)], image, int(given.sum())
