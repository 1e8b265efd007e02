"""Small models of every family, woken, and tokens for them: what the laws of models are tried on."""

import torch
from torch import Tensor, nn

from minar import AnyOrderAR, CategoricalHead, ClassLabel, MaskedAR, NextStepAR, TextPrefix, Transformer, laws
from minar.papers.par import PAR

V, D = 24, 32
FAMILIES = {"next step": NextStepAR, "any order": AnyOrderAR, "masked": MaskedAR}


class Numbers(nn.Linear):
    """A head for continuous tokens: it predicts the number, and draws it with a little noise."""

    def loss(self, h: Tensor, target: Tensor) -> Tensor:
        return (self(h) - target).square().mean(-1)

    def sample(self, h, h_null=None, cfg=1.0, temperature=1.0, generator=None) -> Tensor:
        x = self(h) if h_null is None else self(h_null) + cfg * (self(h) - self(h_null))
        return x + temperature * torch.randn(x.shape, generator=generator)

    def empty(self, batch: int, n: int) -> Tensor:
        return self.weight.new_zeros(batch, n, self.out_features)

    def check(self, tokens: Tensor, wait: bool = False) -> None:
        if tokens.dim() != 3:
            raise ValueError(f"tokens must be (B, N, C), got {tuple(tokens.shape)}")


def model(family=NextStepAR, grid=(4, 4), words=0, seed=0, continuous=False, vocab=V, **more):
    cond = TextPrefix(7, words, D) if words else ClassLabel(5, D)
    embed, head = nn.Embedding(vocab, D), CategoricalHead(D, vocab)
    if continuous:
        embed, head = nn.Linear(3, D), Numbers(D, 3)
    return laws.wake(family(Transformer(D, 2, 2, hidden=D), embed, cond, head, grid, **more), seed)


def par(grid=(4, 4), per_side=2, words=0):
    return model(PAR, grid, words, per_side=per_side)


def batch(grid=(4, 4), words=0, rows=2, seed=0, continuous=False):
    """Tokens by position, and conditions of which neighbours are unlike."""
    generator = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    shape = (rows, n, 3) if continuous else (rows, n)
    tokens = torch.randn(shape, generator=generator) if continuous else torch.randint(V, shape, generator=generator)
    cond = torch.arange(rows) * 2 % 5
    if words:
        cond = (cond[:, None] + torch.randint(2, (rows, words), generator=generator)) % 7
    return tokens, cond
