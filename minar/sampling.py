"""From logits to a token: classifier-free guidance, top-k, top-p, and one draw."""

import torch
from torch import Tensor

from minar.checks import check_number


def guide(cond: Tensor, null: Tensor | None, cfg: float) -> Tensor:
    """Classifier-free guidance, null + cfg * (cond - null): 1 is the plain model, 0 ignores the condition.

    This is LlamaGen's convention. VAR writes (1 + t) cond - t null, so cfg = 1 + t. Ho and Salimans, 2022.
    """
    return cond if null is None else null + cfg * (cond - null)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of (..., V) and set the rest to -inf; ties with the k-th are kept. 0 keeps all."""
    check_number("top_k", k, 0, logits.shape[-1])
    if k == 0:
        return logits
    least = logits.topk(k, -1).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens until their probability passes p; the first is always kept, and ties. 1 keeps all.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020.
    """
    check_number("top_p", p, 0, 1, open_low=True)
    if p == 1:
        return logits
    ranked = logits.sort(-1, descending=True).values
    probability = ranked.softmax(-1)
    before = probability.cumsum(-1) - probability  # what the likelier tokens already cover
    least = ranked.masked_fill(before > p, torch.inf).min(-1, keepdim=True).values
    return logits.masked_fill(logits < least, -torch.inf)


def race(p: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw from (..., V) probabilities: each token runs for a time Exp(1) / p, the fastest wins. Returns (...).

    The same distribution as torch.multinomial, without making the host wait for the device.
    """
    clock = torch.empty_like(p).exponential_(generator=generator).clamp_min_(torch.finfo(p.dtype).tiny)
    return (p / clock).argmax(-1)
