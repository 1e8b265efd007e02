"""A lossless coder: a model that predicts an image well needs few bits to name it.

Arithmetic coding: an interval, at first [0, 1), shrinks at each token to that token's share of it, and any number in
the last one names the whole image in -log2 p bits. Python's integers hold the interval without rounding. Both sides
ask the model the same questions in the same order; where its floats differ by a bit, decoding fails. So: the same
machine, the same number of threads, the CPU.

Rissanen, Langdon, "Arithmetic Coding", 1979. Coding with any-order models: Hoogeboom et al., "Autoregressive Diffusion
Models", 2022.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from minar.cache import KVCache
from minar.model import ARModel
from minar.plan import Plan

PRECISION = 24  # bits of a probability: it is a whole number of parts of 2^24, and never 0


def encode(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> bytes:
    """One image, (1, N) long by position with its (1,) condition, as bytes: its nll, a bit, and rounded up.

    plan: any that the model follows. The reader needs the same model, condition and plan; they are not in the bytes.
    """
    check_one(model, cond, plan)
    model.check(tokens, cond, plan)
    x, low, width, spent = plan.permute(tokens)[0].tolist(), 0, 1, 0

    def tell(slot: int, edges: Tensor) -> int:
        nonlocal low, width, spent  # the interval is [low, low + width) / 2^spent
        start, end = edges[x[slot] : x[slot] + 2].tolist()
        low, width, spent = (low << PRECISION) + start * width, (end - start) * width, spent + PRECISION
        return x[slot]

    walk(model, cond, plan, tell)
    n_bytes = (spent - width.bit_length() + 8) // 8  # so that the interval is no shorter than 256^-n_bytes
    return (-(-low >> spent - 8 * n_bytes)).to_bytes(n_bytes)  # its first number of so many bytes: rounded up


def decode(code: bytes, model: ARModel, cond: Tensor, plan: Plan) -> Tensor:
    """The image, (1, N) long by position, that `encode` gave these bytes for. Other bytes are another image."""
    check_one(model, cond, plan)
    value, n_bits, low, width, spent = int.from_bytes(code), 8 * len(code), 0, 1, 0

    def find(slot: int, edges: Tensor) -> int:
        nonlocal low, width, spent
        spent += PRECISION
        at = ((value << spent >> n_bits) - (low << PRECISION)) // width  # in parts of the interval
        token = int(torch.searchsorted(edges, at, right=True)) - 1
        start, end = edges[token : token + 2].tolist()
        low, width = (low << PRECISION) + start * width, (end - start) * width
        return token

    return plan.unpermute(walk(model, cond, plan, find))


@torch.no_grad()
def walk(model: ARModel, cond: Tensor, plan: Plan, choose: Callable[[int, Tensor], int]) -> Tensor:
    """Fill an image slot by slot, (1, N), with what `choose` says when told the slot and the edges of its shares."""
    tokens, prefix = model.head.empty(1, plan.n), model.prefix(cond)
    cache = KVCache(prefix.shape[1] + plan.n) if model.cached else None
    for s in range(plan.n_steps):
        edges = shares(model.head.logits(model.hidden(tokens, prefix, plan, s, s + 1, cache))[0])
        for slot, row in enumerate(edges, plan.starts[s]):
            tokens[0, slot] = choose(slot, row)
    return tokens


def shares(logits: Tensor) -> Tensor:
    """Probabilities as whole parts of 2^PRECISION, each at least one: (T, V) -> their edges, (T, V + 1) long.

    Rounding costs a token less than 2 V / 2^24 nats. What rounding leaves over goes to the likeliest token.
    """
    p = logits.double().softmax(-1)
    parts = 1 + (p * (2**PRECISION - p.shape[-1])).long()
    parts.scatter_add_(-1, p.argmax(-1, keepdim=True), 2**PRECISION - parts.sum(-1, keepdim=True))
    return torch.cat([torch.zeros_like(parts[:, :1]), parts.cumsum(-1)], -1)


def check_one(model: ARModel, cond: Tensor, plan: Plan) -> None:
    """Raise ValueError unless this is one image, of this model: its interval takes more digits with each token."""
    model.cond.check(cond, wait=True)
    if len(cond) != 1:
        raise ValueError(f"the coder takes one image at a time, got {len(cond)} conditions")
    if plan.pos.dim() != 1:
        raise ValueError(f"one image has one order, (N,): got orders for a batch, {tuple(plan.pos.shape)}")
    model.check_plan(plan, 1)
