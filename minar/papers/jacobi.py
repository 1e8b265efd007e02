"""Speculative Jacobi decoding: draft a whole window, look at it in one pass, and keep what could have been drawn.

No training and no second model: the drafts are what the last pass would have drawn. A draft x that was drawn from q is
kept with probability min(1, p(x) / q(x)) under the new distribution p; the first one that is not is drawn anew from
max(0, p - q), and the rest from p, as drafts of the next pass. The result is distributed as one draw after the other.
At temperature 0 this is Jacobi iteration, and the tokens are those of greedy decoding.

Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding",
2024.
"""

import torch
from torch import Tensor

from minar.cache import KVCache
from minar.checks import check_number
from minar.heads import probabilities
from minar.model import ARModel
from minar.plan import Plan
from minar.sampling import race


@torch.no_grad()
def decode(
    model: ARModel,
    cond: Tensor,
    plan: Plan,
    window: int = 16,
    cfg: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[int]]:
    """(B, N) tokens by position, and how many of them each pass has settled. plan: one token a step.

    Rows share one cache, so a pass settles what is settled in all rows: for the figures of one image use one row.
    """
    check_number("window", window, 1)
    model.check_plan(plan, len(cond))
    plan.check_one_by_one()
    B, V, N = len(cond), model.head.vocab, plan.n
    tokens = model.head.empty(B, N)
    plan, prefix = plan.to(tokens.device), model.prefix(cond.to(tokens.device), guided=cfg != 1)
    q = torch.full((B, N, V), 1 / V, device=tokens.device)  # the first drafts know nothing
    tokens.copy_(race(q, generator))
    cache, settled, n = KVCache(prefix.shape[1] + N + window), [], 0  # asks pass through the cache, too
    while n < N:
        end = min(n + window, N)
        h, h_null = model.hidden_pair(tokens, prefix, plan, n, end, cache)
        p = probabilities(model.head.logits(h, h_null, cfg), temperature, top_k, top_p)
        tokens[:, n:end], kept = verify(tokens[:, n:end], q[:, n:end], p, generator)
        q[:, n:end] = p  # whether kept, replaced or drafted, each token is now one that p would have drawn
        m = min(int(kept.min()) + 1, end - n)
        cache.n -= end - n - m
        settled.append(m)
        n += m
    return plan.unpermute(tokens), settled


def verify(draft: Tensor, q: Tensor, p: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """draft: (B, T), drawn from q, (B, T, V). Returns tokens under p, and how many drafts in front are kept, (B,)."""
    px, qx = (d.gather(-1, draft[..., None])[..., 0] for d in (p, q))
    u = torch.rand(draft.shape, generator=generator, device=draft.device)
    kept = (u * qx < px).long().cumprod(1)
    fresh = race(p, generator)
    instead = race((p - q).clamp_min(0), generator)
    first = kept.sum(1, keepdim=True)
    at = torch.arange(draft.shape[1], device=draft.device)
    return torch.where(at < first, draft, torch.where(at == first, instead, fresh)), first[:, 0]
