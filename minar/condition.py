"""What the picture shall show: a condition becomes vectors that stand before the first token.

Contract of all: forward(cond) -> (B, P, D), null(cond) and drop(cond, p) like cond.
"""

import torch
from torch import Tensor, nn

from minar.checks import check_ids


class ClassLabel(nn.Module):
    """One learned vector per class, and one more, the null class, for "any": it is what guidance subtracts."""

    def __init__(self, n_classes: int, width: int):
        super().__init__()
        self.n_classes, self.width = n_classes, width
        self.table = nn.Embedding(n_classes + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def check(self, label: Tensor, wait: bool = False) -> None:
        """Raise unless `label` is (B,) long in 0 .. n_classes."""
        check_ids("label", label, self.n_classes + 1, 1, wait)

    def forward(self, label: Tensor) -> Tensor:
        """(B,) long -> (B, 1, D)."""
        return self.table(label)[:, None]

    def null(self, label: Tensor) -> Tensor:
        """The null class, once per row: (B,) -> (B,)."""
        return torch.full_like(label, self.n_classes)

    def drop(self, label: Tensor, p: float) -> Tensor:
        """Replace each label by the null class with probability p, so that one model learns both. (B,) -> (B,)."""
        dropped = torch.rand(label.shape, device=label.device) < p
        return torch.where(dropped, self.null(label), label)


class TextPrefix(nn.Module):
    """The words of a caption: `length` vectors, each the word's plus its place's. There is no text encoder.

    Words are 0 .. n_words - 1. Two more are learned: `n_words` fills short captions, `n_words + 1` is the null caption.
    """

    def __init__(self, n_words: int, length: int, width: int):
        super().__init__()
        self.n_words, self.length, self.width = n_words, length, width
        self.table = nn.Embedding(n_words + 2, width)
        self.place = nn.Embedding(length, width)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.place.weight, std=0.02)

    def check(self, words: Tensor, wait: bool = False) -> None:
        """Raise unless `words` is (B, length) long in 0 .. n_words + 1."""
        check_ids("words", words, self.n_words + 2, 2, wait)
        if words.shape[1] != self.length:
            raise ValueError(f"captions must have {self.length} words (fill with {self.n_words}), got {words.shape[1]}")

    def forward(self, words: Tensor) -> Tensor:
        """(B, P) long -> (B, P, D)."""
        return self.table(words) + self.place.weight

    def null(self, words: Tensor) -> Tensor:
        """The null caption, once per row: (B, P) -> (B, P)."""
        return torch.full_like(words, self.n_words + 1)

    def drop(self, words: Tensor, p: float) -> Tensor:
        """Replace whole captions by the null caption with probability p. (B, P) -> (B, P)."""
        dropped = torch.rand(len(words), 1, device=words.device) < p
        return torch.where(dropped, self.null(words), words)
