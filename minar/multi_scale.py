"""VAR's quantizer: a picture as a pyramid of token grids, each of which adds what the coarser ones left over.

Tian et al., "Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction", 2024.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.checks import check_number
from minar.quantizers import Quantized, VectorQuantizer, count, draw_rows, nearest, straight_through, to_map, to_rows
from minar.resize import Resize

RARE = 0.5  # below this part of an equal share a code of a pyramid is given to a scale that needs it more


class MultiScaleQuantizer(VectorQuantizer):
    """A pyramid of square grids, coarse to fine; each says what the coarser ones left over. One codebook serves all.

    Scale k averages what is left down to its side, picks codes, enlarges them (bicubic), smooths them (`Smooth`) and
    adds them to the picture, which keeps its full size; what is left is z minus the picture. The last scale has the
    latent's own side, and nothing is resized there.

    loss = the mean over scales of |sg(z) - picture|^2 + beta |z - sg(picture)|^2, means over all elements.
    hits: (S, V), one row per scale. Tian et al., "Visual Autoregressive Modeling" (VAR), 2024, algorithms 1 and 2.

    sides: they grow, and the last is the latent's: (1, 2, 3, 4, 5, 7) for 7 x 7. n_phi: how many smoothings the
    scales share; those that no scale would use are not made. Raises ValueError for other sides, and for fewer codes
    than scales, since each scale starts with some of its own.
    """

    def __init__(self, vocab: int, channels: int, sides: tuple[int, ...], beta: float = 0.25, n_phi: int = 4):
        super().__init__(vocab, channels, beta)
        if not sides or list(sides) != sorted(set(sides)) or sides[0] < 1:
            raise ValueError(f"the sides of the scales must grow, got {tuple(sides)}")
        check_number("n_phi", n_phi, 1)
        if vocab < len(sides):
            raise ValueError(f"{vocab} codes cannot start {len(sides)} scales: give each at least one")
        self.sides, self.n_phi = tuple(sides), n_phi
        self.sizes = tuple(side**2 for side in sides)  # tokens of each scale
        self.n_tokens = sum(self.sizes)
        wanted = phi_index(len(sides), n_phi)
        used = sorted(set(wanted))
        self.which = tuple(used.index(i) for i in wanted)  # scale -> place in phi
        self.phi = nn.ModuleList(Smooth(channels) for _ in used)
        self.resize = Resize(self.sides)
        self.register_buffer("hits", torch.zeros(len(sides), vocab, dtype=torch.long))
        scale = torch.arange(len(sides)).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("scale", scale, persistent=False)  # (N,), token -> scale

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, channels, side, side). Its tokens stand scale by scale, each row by row."""
        with in_float32(z):
            z, tokens = z.float(), self.encode(z)
            pictures = list(self.pictures(tokens))
            terms = [F.mse_loss(p, z.detach()) + self.beta * F.mse_loss(z, p.detach()) for p in pictures]
            if self.training:
                count(self.hits.view(-1), tokens + self.scale * self.vocab)
            return Quantized(straight_through(z, pictures[-1]), tokens, torch.stack(terms).mean())

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """(B, channels, side, side) -> (B, N) long."""
        return torch.cat([tokens for _, tokens in self.walk(z)], 1)

    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, N) long -> (B, channels, side, side), the last picture. size: that of the last scale, or None."""
        if size is not None:
            self._check_size(*size)
        return list(self.pictures(tokens))[-1]

    def pictures(self, tokens: Tensor) -> Iterator[Tensor]:
        """(B, N) long -> the picture after each scale, (B, channels, side, side), one at a time."""
        if tokens.dim() != 2 or tokens.shape[1] != self.n_tokens:
            raise ValueError(f"a pyramid {self.sides} has {self.n_tokens} tokens, got {tuple(tokens.shape)}")
        picture = 0
        for k, part in enumerate(tokens.split(self.sizes, 1)):
            picture = picture + self.paint(part, k)
            yield picture

    def so_far(self, tokens: Tensor, n_scales: int | None = None) -> Tensor:
        """What the first n_scales scales (default: all) can know of the picture before they add to it.

        (B, N) long -> (B, tokens of these scales, channels): zeros at scale 0; at scale k the picture after scale
        k - 1, averaged down to k's side. Tokens of scales n_scales - 1 and later are not looked at.
        """
        later = range(len(self.sides))[1:n_scales]
        with in_float32(tokens):
            known = [to_rows(self.resize.down(picture, k)) for k, picture in zip(later, self.pictures(tokens))]
        nothing = self.codebook.new_zeros(len(tokens), self.sizes[0], self.channels)
        return torch.cat([nothing, *known], 1)

    def paint(self, tokens: Tensor, k: int) -> Tensor:
        """What scale k adds to the picture: its tokens, (B, side_k^2) -> (B, channels, side, side)."""
        with in_float32(tokens):
            return self.phi[self.which[k]](self.resize.up(to_map(self.lookup(tokens)), k))

    def walk(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each scale: what is left for it to say, (B, side_k^2, channels), and the tokens it picks for that."""
        self._check_size(*z.shape[2:])
        left = z.float()
        for k in range(len(self.sides)):
            with in_float32(z):
                rows = self.space(to_rows(self.resize.down(left, k)))
                tokens = nearest(rows, self.space(self.codebook))
            yield rows, tokens
            left = left - self.paint(tokens, k)

    @torch.no_grad()
    def start_from(self, z: Tensor, generator: torch.Generator | None = None) -> None:
        """Give each scale an equal share of the codes, placed on what is left for it to say; coarse scales first.

        Were all codes placed on z itself, the fine scales, which have most tokens, would soon own them all. A coarse
        scale with fewer vectors than its share takes one code for each.
        """
        self.codebook.zero_()  # a code whose turn is still to come says nothing
        taken, n_scales = 0, len(self.sides)
        for k in range(n_scales):
            rows, _ = next(islice(self.walk(z), k, None))
            share = (self.vocab - taken) // (n_scales - k)
            if k < n_scales - 1:
                share = min(share, rows.shape[0] * rows.shape[1])
            self.codebook[taken : taken + share] = draw_rows(rows, share, generator)
            taken += share
        self.hits.zero_()
        self.started.fill_(True)

    @property
    def dead(self) -> Tensor:
        """Codes with less than `RARE` of an equal share of the use, (V,) bool; all scales have the same weight.

        The finest scale has most tokens and uses nearly every code now and then, so hits alone would free none for
        the coarse scales, which then collapse to a handful. What a coarse scale often picks stays where it is.
        """
        share = self.hits / self.hits.sum(1, keepdim=True).clamp_min(1)  # (S, V)
        return share.mean(0) < RARE / self.vocab

    def fresh(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """What is left to say, (V, channels), the scales taking turns: the coarse ones have few vectors, but equal
        rights.
        """
        share = -(-self.vocab // len(self.sides))
        rows = [draw_rows(rows, share, generator) for rows, _ in self.walk(z)]
        return torch.stack(rows, 1).flatten(0, 1)[: self.vocab]

    def _check_size(self, h: int, w: int) -> None:
        side = self.sides[-1]
        if (h, w) != (side, side):
            raise ValueError(f"the last scale is {side}x{side}, the latent {h}x{w}: give other images, or other sides")


class Smooth(nn.Conv2d):
    """VAR's phi: half of x and half of its 3x3 convolution, which removes what enlarging left behind."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, in float32, as all that a quantizer computes."""
        return 0.5 * x + 0.5 * F.conv2d(x, self.weight.float(), self.bias.float(), padding=1)


def phi_index(n_scales: int, n_phi: int) -> tuple[int, ...]:
    """Which of n_phi smoothings each scale uses: the one whose tick is nearest to k / (n_scales - 1).

    As in VAR's code. Ties are common, and settled by the rounding of float64: the order of the operations matters.
    """
    edge = 1 / 3 / n_phi if n_phi == 4 else 1 / 2 / n_phi
    gap = (1 - edge - edge) / max(1, n_phi - 1)
    ticks = [edge + i * gap for i in range(n_phi - 1)] + [1 - edge]
    gaps = [[abs(tick - k / max(1, n_scales - 1)) for tick in ticks] for k in range(n_scales)]
    return tuple(row.index(min(row)) for row in gaps)


def in_float32(x: Tensor) -> AbstractContextManager:
    """No autocast where x is; a meta tensor knows of none."""
    known = torch.amp.is_autocast_available(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if known else nullcontext()
