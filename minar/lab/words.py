"""Captions as numbers: a word is its place in a list of the words that occur. No text encoder, nothing to download."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor


class Words:
    """The `n` commonest words of some captions. Rarer ones are left out of a caption, as stop words would be."""

    def __init__(self, captions: Sequence[str], n: int):
        counted = Counter(word for caption in captions for word in split(caption))
        if not counted:
            raise ValueError("the captions hold no word")
        self.words = [word for word, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:n]]
        self.number = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, captions: Sequence[str], length: int) -> Tensor:
        """(B, length) long for `TextPrefix(len(words), length, width)`: known words, then len(words) as filling."""
        rows = []
        for caption in captions:
            known = [self.number[word] for word in split(caption) if word in self.number][:length]
            rows.append(known + [len(self)] * (length - len(known)))
        return torch.tensor(rows)

    def decode(self, rows: Tensor) -> list[str]:
        """The captions of (B, length) numbers, without the filling."""
        return [" ".join(self.words[i] for i in row if i < len(self)) for row in rows.tolist()]


def split(caption: str) -> list[str]:
    return re.findall(r"[^\W_]+", caption.lower())
