"""Homework 1: what your course asks for, and the checks that judge it.

`python hw1_checks.py hw1.py` tries your file. Whoever grades runs the same checks with another seed.
"""

import hashlib
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar import GPT, Quantized, Transformer, laws

COURSE = "example"
ORDERS = {
    "column by column from the top left": lambda place: place.T.flatten(),
    "column by column from the bottom right": lambda place: place.T.flatten().flip(0),
    "row by row from the bottom right": lambda place: place.flatten().flip(0),
    "row by row from the top, each row from right to left": lambda place: place.flip(1).flatten(),
}
LAYOUTS = ("(T, B, H, hd)", "(B, T, H, hd)", "(B, H, T, hd)", "(B, H, hd, T)")
CACHES = [(axis, newest) for axis in range(4) for newest in (False, True) if (axis, newest) != (2, False)]


@dataclass(frozen=True)
class Task:
    """What one course asks for. axis: where the slots stand in keys and values; see `text` for the rest."""

    order: str
    sphere: bool
    beta: float
    axis: int
    newest_first: bool

    def reading(self, h: int, w: int) -> Tensor:
        """(N,) long: the place on the grid, counted row by row, of each token."""
        return ORDERS[self.order](torch.arange(h * w).view(h, w))

    def space(self, rows: Tensor) -> Tensor:
        """Where distances are measured: (..., C) -> (..., C)."""
        return F.normalize(rows, dim=-1) if self.sphere else rows

    def text(self) -> str:
        """The task in words, as Markdown."""
        where = (
            "on the **unit sphere**: vectors and codes are divided by their length first, in decoding, too"
            if self.sphere
            else "by **Euclidean** distance of the vectors as they are"
        )
        first = "newest" if self.newest_first else "oldest"
        return f"""Your course asks for this:

- Tokens are read **{self.order}**.
- The nearest code is found {where}.
- In the loss the commitment term weighs beta = **{self.beta}**.
- Keys and values are **{LAYOUTS[self.axis]}**. What is put comes oldest slot first; what is returned is **{first} slot
  first**."""


def task(course: str) -> Task:
    """The task of a course, by its name."""
    return Task(
        order=_choice(course, "order", list(ORDERS)),
        sphere=_choice(course, "sphere", [False, True]),
        beta=_choice(course, "beta", [0.1, 0.15, 0.35, 0.4, 0.6, 0.75]),
        axis=_choice(course, "cache", CACHES)[0],
        newest_first=_choice(course, "cache", CACHES)[1],
    )


def _choice(course: str, what: str, choices: list):
    """One of the choices, the same on every machine and in every version of Python."""
    number = int.from_bytes(hashlib.sha256(f"hw1 {what} {course}".encode()).digest()[:8], "big")
    return choices[number % len(choices)]


def check_encode(encode: Callable, task: Task, seed: int) -> None:
    """encode(z, codebook) gives (B, N) long: for each place the nearest code, in your course's order."""
    for z, codebook in _cases(seed):
        tokens = encode(z.clone(), codebook.clone())
        _check_tokens(tokens, z)
        by_place = torch.empty_like(tokens)
        by_place[:, task.reading(*z.shape[2:])] = tokens
        assert by_place.unique().numel() > 1, "one code does everything"
        assert int(by_place.min()) >= 0 and int(by_place.max()) < len(codebook), "a token is not a row of the codebook"
        rows, codes = task.space(z.flatten(2).mT), task.space(codebook)
        distance = torch.cdist(rows, codes.expand(len(rows), -1, -1))
        wrong = distance.gather(-1, by_place[..., None])[..., 0] - distance.amin(-1) > 1e-4
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} tokens are not the nearest code of their place"


def check_decode(decode: Callable, task: Task, seed: int) -> None:
    """decode(tokens, codebook, (h, w)) gives (B, C, h, w): at each place the code of its token."""
    for z, codebook in _cases(seed):
        h, w = z.shape[2:]
        tokens = torch.randint(len(codebook), (len(z), h * w), generator=torch.Generator().manual_seed(seed))
        decoded = decode(tokens.clone(), codebook.clone(), (h, w))
        assert decoded.shape == z.shape, f"decode must give {tuple(z.shape)}, got {tuple(decoded.shape)}"
        at_place = decoded.flatten(2)[..., task.reading(h, w)].mT  # (B, N, C) in the order of the tokens
        gap = float((at_place - task.space(codebook)[tokens]).abs().max())
        assert gap <= 1e-5, f"a place has another code than its token says: they differ by up to {gap:.2g}"


def check_quantize(quantize: Callable, encode: Callable, decode: Callable, task: Task, seed: int) -> None:
    """quantize(z, codebook) gives (codes, tokens, loss), and minar's law of quantizers holds for the three."""
    for z, codebook in _cases(seed):
        laws.check_quantizer(_Yours(quantize, encode, decode, codebook, task), z)


class _Yours(nn.Module):
    """Your functions as the quantizer that the law expects: a module whose tokens are row by row."""

    def __init__(self, quantize: Callable, encode: Callable, decode: Callable, codebook: Tensor, task: Task):
        super().__init__()
        self.codebook, self.beta, self.space = nn.Parameter(codebook.clone()), task.beta, task.space
        self.functions, self.task = (quantize, encode, decode), task

    def forward(self, z: Tensor) -> Quantized:
        codes, tokens, loss = self.functions[0](z, self.codebook)
        _check_tokens(tokens, z)
        assert codes.shape == z.shape, f"the codes must be {tuple(z.shape)}, got {tuple(codes.shape)}"
        assert loss.shape == (), f"the loss must be one number, got shape {tuple(loss.shape)}"
        return Quantized(codes, self._by_place(tokens, z), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        return self._by_place(self.functions[1](z.detach(), self.codebook.detach()), z)

    def decode(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return self.functions[2](tokens[:, self.task.reading(*size)], self.codebook.detach(), size)

    def _by_place(self, tokens: Tensor, z: Tensor) -> Tensor:
        by_place = torch.empty_like(tokens)
        by_place[:, self.task.reading(*z.shape[2:])] = tokens
        return by_place


def check_cache(make: Callable, task: Task, seed: int) -> None:
    """make(max_len) is a cache in your course's layout: minar's law of caches holds, and a GPT decodes with it."""
    laws.check_kv(lambda max_len: _Turned(make(max_len), task))
    draw = random.Random(seed)
    h, w, layers = draw.randint(2, 3), draw.randint(3, 4), draw.randint(1, 3)
    gpt = laws.wake(GPT(Transformer(16, layers, 2, hidden=16), 11, 3, (h, w)), seed)
    tokens = torch.randint(11, (2, h * w - 1), generator=torch.Generator().manual_seed(seed))
    label, middle = torch.tensor([0, 2]), draw.randint(2, h * w - 3)
    whole, cache = gpt.logits(tokens, label), _Turned(make(h * w), task)
    parts = [gpt.logits(tokens[:, :end], label, cache) for end in (0, middle, h * w - 1)]
    laws.check_equal(lambda: whole, lambda: torch.cat(parts, 1))
    cache.n = middle  # forget, and compute again
    laws.check_equal(lambda: whole[:, middle:], lambda: gpt.logits(tokens, label, cache))


class _Turned:
    """Your cache as minar's transformer expects it: (B, H, T, hd), oldest slot first."""

    def __init__(self, cache, task: Task):
        self.cache, self.task = cache, task

    @property
    def n(self) -> int:
        return self.cache.n

    @n.setter
    def n(self, value: int) -> None:
        self.cache.n = value

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.put(layer, *(self._yours(x) for x in (k, v)))
        return self._minars(keys), self._minars(values)

    def advance(self, n_new: int) -> None:
        self.cache.advance(n_new)

    def _yours(self, x: Tensor) -> Tensor:
        return x.permute(((2, 0, 1, 3), (0, 2, 1, 3), (0, 1, 2, 3), (0, 1, 3, 2))[self.task.axis]).contiguous()

    def _minars(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, f"put must return {LAYOUTS[self.task.axis]} twice, got {tuple(x.shape)}"
        x = x.permute(((1, 2, 0, 3), (0, 2, 1, 3), (0, 1, 2, 3), (0, 1, 3, 2))[self.task.axis])
        return x.flip(2) if self.task.newest_first else x


def _cases(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Two maps z, (B, C, h, w) with h unlike w, and their codebooks, (V, C)."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cases = []
    for _ in range(2):
        h, w, channels, vocab = draw.randint(2, 4), draw.randint(5, 7), draw.randint(2, 5), draw.randint(6, 20)
        z = torch.randn(draw.randint(2, 3), channels, h, w, generator=generator)
        cases.append((z, torch.randn(vocab, channels, generator=generator)))
    return cases


def _check_tokens(tokens: Tensor, z: Tensor) -> None:
    shape = (len(z), z.shape[2] * z.shape[3])
    assert isinstance(tokens, Tensor) and tokens.dtype == torch.long, "tokens must be a tensor of torch.long"
    assert tokens.shape == shape, f"tokens must be {shape}, got {tuple(tokens.shape)}"


CHECKS = {  # task -> points, check, and the functions it judges
    "encode": (2, check_encode, ("encode",)),
    "decode": (1, check_decode, ("decode",)),
    "quantize": (4, check_quantize, ("quantize", "encode", "decode")),
    "cache": (3, check_cache, ("Cache",)),
}


def main(path: str) -> None:
    """Try a student's file with the seed that everybody knows."""
    import runpy

    from minar.lab.profile import exercise

    yours = runpy.run_path(path)
    for name, (points, check, needs) in CHECKS.items():
        print(f"{name} ({points} points): ", end="")
        try:
            exercise(check, *(yours[need] for need in needs), task(COURSE), 0)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
