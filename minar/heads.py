"""The head: from a hidden state to the loss of a token, or to a token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.checks import check_ids, check_number
from minar.cross_entropy import cross_entropy
from minar.sampling import guide, race, top_k, top_p


class CategoricalHead(nn.Linear):
    """A softmax over V codes. It starts at zero, so that the first loss is exactly ln V."""

    def __init__(self, width: int, vocab: int):
        super().__init__(width, vocab, bias=False)
        self.width, self.vocab = width, vocab
        nn.init.zeros_(self.weight)

    def loss(self, h: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy in nats of each token, in float32. h: (B, N, D); target: (B, N) long. Returns (B, N)."""
        return cross_entropy(h.flatten(0, 1), self.weight, target.flatten()).view_as(target)

    def logits(self, h: Tensor, h_null: Tensor | None = None, cfg: float = 1.0) -> Tensor:
        """Guided logits in float32. h, h_null: (B, T, D), with and without the condition. Returns (B, T, V)."""
        if h_null is None:
            return self(h).float()
        return guide(*self(torch.cat([h, h_null])).float().chunk(2), cfg)  # one product: the weights are read once

    def sample(
        self,
        h: Tensor,
        h_null: Tensor | None = None,
        cfg: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One token per slot, (B, T): guidance, then temperature, top-k, top-p, then a draw.

        temperature 0 takes the first of the largest logits. top_k 0 and top_p 1 are off.
        """
        return sample_token(self.logits(h, h_null, cfg), temperature, top_k, top_p, generator)

    def check(self, tokens: Tensor, wait: bool = False) -> None:
        """Raise unless `tokens` is (B, t) long in 0 .. V-1. wait: look at the values on a GPU, too."""
        check_ids("tokens", tokens, self.vocab, 2, wait)

    def empty(self, batch: int, n: int) -> Tensor:
        """(batch, n) tokens to be filled in, on the head's device."""
        return torch.zeros(batch, n, dtype=torch.long, device=self.weight.device)


def sample_token(
    logits: Tensor,
    temperature: float = 1.0,
    k: int = 0,
    p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A token from (..., V) logits: temperature, top-k, top-p, a draw; at temperature 0 the first of the largest."""
    if temperature == 0:
        return logits.argmax(-1)
    return race(probabilities(logits, temperature, k, p), generator)


def probabilities(logits: Tensor, temperature: float = 1.0, k: int = 0, p: float = 1.0) -> Tensor:
    """What a token is drawn from, (..., V): temperature, then top-k, then top-p. 0: all on the first of the largest."""
    check_number("temperature", temperature, 0)
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).type_as(logits)
    return top_p(top_k(logits / temperature, k), p).softmax(-1)
