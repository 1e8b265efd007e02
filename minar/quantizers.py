"""Quantizers: a map of vectors becomes a grid of integers, and back.

Contract of all: forward(z) -> Quantized, encode(z) -> tokens, decode(tokens) -> z, lookup(tokens) -> rows; `hits`
counts how often each code was used since the last reset. Starting and restarting codes is `fit`'s work, not forward's.
N is h * w, but for MultiScaleQuantizer, which has the tokens of a pyramid and counts hits per scale.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.checks import check_ids, check_number
from minar.tf32 import on_tensor_cores


class Quantized(NamedTuple):
    z: Tensor  # (B, C, h, w), the codes; gradients pass straight through to the encoder
    tokens: Tensor  # (B, N) long
    loss: Tensor  # (), codebook and commitment terms


def to_rows(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, N, C)."""
    return z.flatten(2).transpose(1, 2)


def to_map(rows: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """(B, N, C) -> (B, C, h, w); a square map unless a size is given."""
    side = math.isqrt(rows.shape[1])
    h, w = size or (side, side)
    if h * w != rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} tokens do not fill a {h}x{w} grid: pass size=(h, w)")
    return rows.transpose(1, 2).unflatten(2, (h, w))


def straight_through(z: Tensor, code: Tensor) -> Tensor:
    """The value of `code` with the gradient of `z`: rounding has no slope, so it is skipped on the way back."""
    return z + (code - z).detach()


def nearest(rows: Tensor, codes: Tensor, block: int | None = None) -> Tensor:
    """Index of the nearest code for each of (..., C) rows, by |e|^2 / 2 - z.e.

    At most `block` distances are held at a time: all of them would be N x V numbers.
    """
    block = block or (2**24 if rows.is_cuda else 2**22)
    half_norm = codes.square().sum(-1) / 2
    with on_tensor_cores(rows.reshape(-1, rows.shape[-1]), codes) as (flat, codes):
        parts = flat.split(max(1, block // len(codes)))
        best = [torch.addmm(half_norm, part, codes.T, alpha=-1).argmin(-1) for part in parts]
    return torch.cat(best).view(rows.shape[:-1])


class VectorQuantizer(nn.Module):
    """A codebook of `vocab` vectors; each z is replaced by the nearest (Euclidean). van den Oord et al., 2017.

    loss = |sg(z) - e|^2 (codebook: codes move to encodings) + beta |z - sg(e)|^2 (commitment: encodings stay near),
    means over all elements.
    """

    def __init__(self, vocab: int, channels: int, beta: float = 0.25):
        super().__init__()
        check_number("vocab", vocab, 2)
        self.vocab, self.channels, self.beta = vocab, channels, beta
        self.codebook = nn.Parameter(torch.empty(vocab, channels).uniform_(-1 / vocab, 1 / vocab))
        self.register_buffer("hits", torch.zeros(vocab, dtype=torch.long))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))  # do the codes come from data yet?

    def space(self, rows: Tensor) -> Tensor:
        """Where distances are measured; float32, since bf16 cannot tell near codes apart."""
        return rows.float()

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, channels, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            rows, codes = self.space(to_rows(z)), self.space(self.codebook)
            tokens = nearest(rows.detach(), codes.detach())
            chosen = F.embedding(tokens, codes)  # (B, N, C)
            loss = F.mse_loss(chosen, rows.detach()) + self.beta * F.mse_loss(rows, chosen.detach())
            if self.training:
                count(self.hits, tokens)
            return Quantized(to_map(straight_through(rows, chosen), z.shape[2:]), tokens, loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, h * w) long."""
        with torch.autocast(z.device.type, enabled=False):
            return nearest(self.space(to_rows(z)), self.space(self.codebook))

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, N) long -> (B, N, channels)."""
        check_ids("tokens", tokens, self.vocab, 2)
        return F.embedding(tokens, self.space(self.codebook))

    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, N) long -> (B, channels, h, w)."""
        return to_map(self.lookup(tokens), size)

    @torch.no_grad()
    def start_from(self, z: Tensor, generator: torch.Generator | None = None) -> None:
        """Place every code on an encoding of z, (B, channels, h, w): a codebook far from the data is never used."""
        self.codebook.copy_(self.fresh(z, generator))
        self.hits.zero_()
        self.started.fill_(True)

    @torch.no_grad()
    def restart(self, z: Tensor, generator: torch.Generator | None = None) -> int:
        """Move each `dead` code onto an encoding of z, reset `hits`, and say how many moved.

        Dhariwal et al., "Jukebox", 2020 (random restarts).
        """
        dead = self.dead
        self.codebook.copy_(torch.where(dead[:, None], self.fresh(z, generator), self.codebook))
        self.hits.zero_()
        return int(dead.sum())

    @property
    def dead(self) -> Tensor:
        """The codes that restarts may move, those without a hit: (V,) bool."""
        return self.hits == 0

    def fresh(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """Encodings of z to place codes on, (V, channels)."""
        return draw_rows(self.space(to_rows(z)), self.vocab, generator)


class CosineQuantizer(VectorQuantizer):
    """The same on the unit sphere: z and codes are l2-normalised at every look-up, in training and in decoding.

    With few channels (8 or so) nearly all codes get used. Yu et al., "Vector-quantized Image Modeling with Improved
    VQGAN", 2022; LlamaGen's tokenizer. The stored codebook is not of unit length.
    """

    def space(self, rows: Tensor) -> Tensor:
        return F.normalize(rows.float(), dim=-1)


class FSQ(nn.Module):
    """Finite scalar quantization: no codebook. Each channel is squashed and rounded to one of its levels.

    levels (8, 8, 16) make 1,024 codes of 3 channels. There is nothing to collapse and no extra loss.
    Mentzer et al., 2023; the squashing is shifted by atanh so that even levels are centred exactly.
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"each channel needs at least 2 levels, got {tuple(levels)}")
        self.levels = tuple(levels)
        self.vocab, self.channels = math.prod(levels), len(levels)
        self.register_buffer("size", torch.tensor(levels), persistent=False)
        place = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("place_value", torch.tensor(place), persistent=False)
        self.register_buffer("hits", torch.zeros(self.vocab, dtype=torch.long))

    def squash(self, rows: Tensor) -> Tensor:
        """Any (..., C) -> (0 - 1/2, L - 1/2) per channel, so that rounding gives 0 .. L - 1."""
        reach = (self.size - 1) * 1.001 / 2
        shift = torch.atanh(torch.where(self.size % 2 == 0, 0.5, 0.0) / reach)
        centre = torch.where(self.size % 2 == 0, 0.5, 0.0)
        return (torch.tanh(rows.float() + shift) * reach - centre) + self.size // 2

    def scale(self, levels: Tensor) -> Tensor:
        """0 .. L - 1 -> about [-1, 1], what the decoder reads."""
        return levels / (self.size // 2) - 1

    def index(self, levels: Tensor) -> Tensor:
        return (levels.long() * self.place_value).sum(-1)

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, channels, h, w)."""
        soft = self.squash(to_rows(z))
        levels = soft.round()
        tokens = self.index(levels)
        if self.training:
            count(self.hits, tokens)
        codes = self.scale(straight_through(soft, levels))
        return Quantized(to_map(codes, z.shape[2:]), tokens, codes.new_zeros(()))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        return self.index(self.squash(to_rows(z)).round())

    def lookup(self, tokens: Tensor) -> Tensor:
        check_ids("tokens", tokens, self.vocab, 2)
        levels = tokens[..., None] // self.place_value % self.size
        return self.scale(levels.float())

    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return to_map(self.lookup(tokens), size)


def count(hits: Tensor, tokens: Tensor) -> None:
    hits.index_add_(0, tokens.flatten(), torch.ones_like(tokens).flatten())


def draw_rows(rows: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n of the (B, N, C) rows, each row once as long as there are enough."""
    flat = rows.flatten(0, 1)
    laps = -(-n // len(flat))
    order = torch.cat([torch.randperm(len(flat), generator=generator) for _ in range(laps)])[:n]
    return flat[order.to(flat.device)]
