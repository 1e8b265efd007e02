"""The one decoding loop: every model, every plan."""

import torch
from torch import Tensor
from tqdm import trange

from minar.cache import KVCache
from minar.checks import check_number
from minar.model import ARModel, Scale, is_guided
from minar.plan import Plan


@torch.no_grad()
def generate(
    model: ARModel,
    cond: Tensor,
    plan: Plan,
    cfg: Scale = 1.0,
    prompt: Tensor | None = None,
    prompt_steps: int = 0,
    use_cache: bool = True,
    progress: bool = False,
    **knobs,
) -> Tensor:
    """Draw one image's tokens for each condition, step by step: (B, N) by position.

    cfg: guidance, 1 is off; or a function of (plan, step). prompt: (B, N) by position, of which the tokens of the first
    prompt_steps steps are kept, and the rest is not looked at. use_cache=False computes everything anew at every step;
    the result is the same. knobs go to model.draw, and from there to the head: temperature, top_k, top_p, generator.
    """
    model.cond.check(cond, wait=True)
    model.check_plan(plan, len(cond))
    if not callable(cfg):
        check_number("cfg", cfg, 0)
    tokens = model.head.empty(len(cond), plan.n)
    plan, cond = plan.to(tokens.device), cond.to(tokens.device)
    fill_prompt(tokens, model, plan, prompt, prompt_steps)
    prefix = model.prefix(cond, guided=is_guided(cfg))
    cache = KVCache(prefix.shape[1] + plan.n) if use_cache and model.cached else None
    for s in trange(prompt_steps, plan.n_steps, disable=not progress, desc="decode"):
        tokens[:, plan.span(s)] = model.draw(tokens, prefix, plan, s, cache, cfg, **knobs)
    return plan.unpermute(tokens)


def fill_prompt(tokens: Tensor, model: ARModel, plan: Plan, prompt: Tensor | None, steps: int) -> None:
    """Write the tokens of the first `steps` steps of a (B, N) prompt by position into (B, N) tokens by slot."""
    if not 0 <= steps <= plan.n_steps:
        raise ValueError(f"prompt_steps must lie in 0..{plan.n_steps}, the steps of the plan, got {steps}")
    if prompt is None:
        if steps:
            raise ValueError(f"prompt_steps is {steps}, but there is no prompt")
        return
    if prompt.shape != tokens.shape:
        raise ValueError(f"prompt must be {tuple(tokens.shape)}, a token for each position, got {tuple(prompt.shape)}")
    model.head.check(prompt, wait=True)
    tokens[:, : plan.starts[steps]] = plan.permute(prompt.to(tokens.device))[:, : plan.starts[steps]]
