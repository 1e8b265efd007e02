"""MaskGIT: guess all that is hidden, keep what the model is surest of, and guess the rest again.

A plan says beforehand which tokens are drawn when. Here the model decides: how many tokens a step settles is fixed,
which ones is not, and each image of a batch goes its own way. Random and Halton orders need none of this: they are
`generate` with a plan.

Chang et al., "MaskGIT: Masked Generative Image Transformer", 2022.
"""

import torch
from torch import Tensor

from minar.checks import check_number
from minar.generate import fill_prompt
from minar.heads import probabilities
from minar.masked import MaskedAR
from minar.model import Scale, is_guided
from minar.plan import Plan, completing, cosine_sizes, raster
from minar.sampling import race


@torch.no_grad()
def decode(
    model: MaskedAR,
    cond: Tensor,
    sizes: int | tuple[int, ...],
    cfg: Scale = 1.0,
    temperature: float = 1.0,
    choice: float = 4.5,
    generator: torch.Generator | None = None,
    prompt: Tensor | None = None,
    known: Tensor | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(B, N) tokens, and the step that settled each, (B, N), both by position.

    sizes: tokens settled in each step, or how many steps (`cosine_sizes`). choice: how much Gumbel noise is added to
    the confidence (nats), less in each step and none in the last; 0 always keeps the surest. MaskGIL's 4.5 is
    4.5 T / (T - 1) here, for T steps. prompt, known: (B, N) tokens and (N,) bool, by position: tokens that are known
    stay; they are step 0 then, and drawing starts with step 1. cfg, temperature, top_k, top_p: as in `generate`.
    Raises ValueError for choice < 0, a known set that is nothing or everything, more steps than tokens to draw, and
    sizes that do not add up to them.
    """
    check_number("choice", choice, 0)
    if (prompt is None) != (known is None):
        raise ValueError("prompt and known go together: known says which tokens of the prompt stay")
    plan, first = _plan(model, sizes, known), 0 if known is None else 1
    model.cond.check(cond, wait=True)
    tokens = model.head.empty(len(cond), plan.n)
    plan, cond = plan.to(tokens.device), cond.to(tokens.device)
    fill_prompt(tokens, model, plan, prompt, first)
    prefix = model.prefix(cond, guided=is_guided(cfg))
    step = torch.where(plan.step < first, 0, plan.n_steps).repeat(len(cond), 1)  # n_steps: not settled yet
    for s in range(first, plan.n_steps):
        hidden, noise = step == plan.n_steps, choice * (plan.n_steps - 1 - s) / (plan.n_steps - first)
        logits = guided_logits(model, tokens, prefix, plan, ~hidden, s, cfg)
        guess = race(probabilities(logits, temperature, top_k, top_p), generator)
        chosen = choose(logits, guess, hidden, plan.sizes[s], noise, generator)
        tokens, step = torch.where(chosen, guess, tokens), torch.where(chosen, s, step)
    return plan.unpermute(tokens), plan.unpermute(step)


def choose(
    logits: Tensor, guess: Tensor, hidden: Tensor, n: int, noise: float, generator: torch.Generator | None = None
) -> Tensor:
    """Which n of the hidden guesses are kept: those of the largest log p(guess) + noise * Gumbel(0, 1).

    logits: (B, N, V), at temperature 1: at 0 all guesses would be sure. guess: (B, N); hidden: (B, N) bool.
    Returns (B, N) bool.
    """
    confidence = logits.log_softmax(-1).gather(-1, guess[..., None])[..., 0]
    gumbel = -torch.empty_like(confidence).exponential_(generator=generator).log()
    surest = (confidence + noise * gumbel).masked_fill(~hidden, -torch.inf).topk(n, -1).indices
    return torch.zeros_like(hidden).scatter(-1, surest, True)


def guided_logits(
    model: MaskedAR, tokens: Tensor, prefix: Tensor, plan: Plan, known: Tensor, s: int, cfg: Scale
) -> Tensor:
    """Logits of all slots in step s, (B, N, V). tokens, known: (B, N) by slot. prefix: (B or 2B, P, D)."""
    if len(prefix) == len(tokens):
        return model.head.logits(model.look(tokens, prefix, plan, known))
    scale = cfg(plan, s) if callable(cfg) else cfg
    check_number("cfg", scale, 0)
    return model.head.logits(*model.look(tokens.repeat(2, 1), prefix, plan, known.repeat(2, 1)).chunk(2), scale)


def _plan(model: MaskedAR, sizes: int | tuple[int, ...], known: Tensor | None) -> Plan:
    """The sizes of the steps, and which slots are known from the start; the order of the others means nothing."""
    order = raster(*model.grid)
    if known is not None:
        return completing(known, sizes, order=order)
    return Plan(order.pos, cosine_sizes(order.n, sizes) if isinstance(sizes, int) else sizes)
