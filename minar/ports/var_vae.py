"""Official VAR tokenizer: an image becomes grids of tokens from coarse to fine, each of which mends those before it.

    vae = load_vae(read("vae_ch160v4096z32.pth"), sides=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    tokens = vae.encode(images)  # (B, 680): the scales one behind the other
    previews = [vae.decoder(z) for z in vae.quantizer.accumulate(tokens)]

It is a minar.VQVAE around a network under the names of the official keys, and a residual quantizer. The network is
LlamaGen's with other names, q, k and v in one product, and 3x3 convolutions next to the quantizer.

Source: FoundationVision/VAR, models/{vqvae,basic_vae,quant}.py. Tian et al., "Visual Autoregressive Modeling: Scalable
Image Generation via Next-Scale Prediction", 2024, section 3.2.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar import VQVAE
from minar.checks import check_ids
from minar.lab.checkpoint import CheckpointError, register
from minar.multi_scale import phi_index
from minar.ports.llamagen_vq import Downsample, ResBlock, Upsample, norm
from minar.ports.official import count, fill, read, rename, shape, unwrap
from minar.quantizers import Quantized, nearest, straight_through, to_map, to_rows
from minar.resize import Resize

__all__ = ["VARDecoder", "VAREncoder", "VARQuantizer", "load_vae", "phi_index", "read"]

NAMES = {
    "encoder.quant_conv": "quant_conv",
    "decoder.post_quant_conv": "post_quant_conv",
    "quantizer.phi.": "quantize.quant_resi.qresi_ls.",
    "quantizer.": "quantize.",
}
STATISTIC = "quantize.ema_vocab_hit_SV"


def load_vae(state_dict: dict, sides: tuple[int, ...]) -> VQVAE:
    """VAR's tokenizer from its official weights, in eval mode, on their device, in float32.

    sides: of the grids of tokens, from coarse to fine. They are not in the file: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) for
    256 pixels, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32) for 512. All other sizes are read off the shapes.
    Raises ValueError for sides that do not grow; CheckpointError, naming the official key, for anything missing,
    unknown or misshaped. Only `quantize.ema_vocab_hit_SV`, a statistic, may be there or not.
    """
    what = "VAR tokenizer"
    check_sides(sides)
    state = {k: v for k, v in unwrap(state_dict).items() if k != STATISTIC}
    vocab, z_channels = shape(state, "quantize.embedding.weight", 2, what)
    width, in_channels = shape(state, "encoder.conv_in.weight", 4, what)[:2]
    if width % 32 or not width:
        raise CheckpointError(f"{what}: 'encoder.conv_in.weight' gives {width} channels, expected a multiple of 32")
    kernel = shape(state, "quant_conv.weight", 4, what)[2]
    n_levels, n_blocks = count(state, "encoder.down"), count(state, "encoder.down.0.block")
    firsts = [shape(state, f"encoder.down.{i}.block.0.conv1.weight", 4, what)[0] for i in range(n_levels)]
    sizes = in_channels, z_channels, width, tuple(max(1, first // width) for first in firsts), n_blocks, kernel
    with torch.device("meta"):  # no random start, since all of it is overwritten
        quantizer = VARQuantizer(vocab, z_channels, sides, count(state, "quantize.quant_resi.qresi_ls"))
        vae = VQVAE(VAREncoder(*sizes), VARDecoder(*sizes), quantizer)
    return fill(vae, state, lambda key: [rename(key, NAMES)], what)


def check_sides(sides: tuple[int, ...]) -> None:
    whole = isinstance(sides, tuple | list) and len(sides) > 1 and all(isinstance(side, int) for side in sides)
    if not whole or sides[0] < 1 or any(a >= b for a, b in pairwise(sides)):
        raise ValueError(f"sides must be two or more whole numbers, each larger than the one before, got {sides}")


class Phi(nn.Conv2d):
    """Half of what comes in and half its convolution: smooths what was resized."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return (h + super().forward(h)) / 2


@register
class VARQuantizer(nn.Module):
    """Residual quantizer over scales with one codebook. Tokens are (B, L) long, L = sum of side^2, coarse first.

    Each scale stores what the scales before it have left over, shrunk to its grid. All is summed at full size.
    n_phi: convolutions, which neighbouring scales share. beta: weight of the commitment term.
    """

    def __init__(self, vocab: int, channels: int, sides: tuple[int, ...], n_phi: int, beta: float = 0.25):
        super().__init__()
        check_sides(sides)
        self.vocab, self.channels, self.sides, self.n_phi, self.beta = vocab, channels, tuple(sides), n_phi, beta
        self.n_tokens = sum(side**2 for side in sides)
        self.index = phi_index(len(sides), n_phi)
        self.embedding = nn.Embedding(vocab, channels)
        self.phi = nn.ModuleList(Phi(channels) for _ in range(n_phi))
        self.resize = Resize(self.sides)

    def forward(self, z: Tensor) -> Quantized:
        """z: (B, channels, S, S), S = sides[-1]. The loss is that of VQ-VAE for each sum so far, averaged."""
        tokens = self.encode(z)
        sums = self.accumulate(tokens)
        losses = [F.mse_loss(x, z.detach()) + self.beta * F.mse_loss(z, x.detach()) for x in sums]
        return Quantized(straight_through(z, sums[-1]), tokens, torch.stack(losses).mean())

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """(B, channels, S, S) -> (B, L) long. Raises ValueError for a map of another size."""
        if tuple(z.shape[2:]) != (self.sides[-1],) * 2:
            raise ValueError(f"the last side is {self.sides[-1]}, got a map of {(*z.shape[2:],)}: resize the images")
        tokens, rest = [], z.float()
        with torch.autocast(z.device.type, enabled=False):
            for s in range(len(self.sides)):
                tokens.append(nearest(self.shrink(rest, s), self.embedding.weight))
                rest = rest - self.grow(tokens[s], s)
        return torch.cat(tokens, 1)

    def accumulate(self, tokens: Tensor) -> list[Tensor]:
        """(B, L) long -> the sums after each scale, (B, channels, S, S) each; the last is what the decoder reads."""
        check_ids("tokens", tokens, self.vocab, 2)
        if tokens.shape[1] != self.n_tokens:
            raise ValueError(f"sides {self.sides} have {self.n_tokens} tokens, got {tokens.shape[1]} per row")
        parts = tokens.split([side**2 for side in self.sides], 1)
        sums = [self.grow(parts[0], 0)]
        for s in range(1, len(parts)):
            sums.append(sums[-1] + self.grow(parts[s], s))
        return sums

    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, L) long -> (B, channels, S, S). size: as other quantizers take it, here (S, S) and nothing else."""
        if size is not None and tuple(size) != (self.sides[-1],) * 2:
            raise ValueError(f"the last side is {self.sides[-1]}, got size {tuple(size)}: leave it out")
        return self.accumulate(tokens)[-1]

    def inputs(self, tokens: Tensor) -> Tensor:
        """What a transformer reads in place of the tokens of all scales but the first: (B, L - sides[0]^2, channels).

        At each place stands what the scales before have summed up to, not an embedding of a token.
        """
        sums = self.accumulate(tokens)
        return torch.cat([self.shrink(x, s) for s, x in enumerate(sums[:-1], start=1)], 1)

    def shrink(self, x: Tensor, s: int) -> Tensor:
        """(B, channels, S, S) -> the rows of scale s, (B, side^2, channels)."""
        return to_rows(self.resize.down(x.float(), s).type_as(x))

    def grow(self, tokens: Tensor, s: int) -> Tensor:
        """What the tokens of scale s add to the sum: (B, side^2) long -> (B, channels, S, S)."""
        h = to_map(self.embedding(tokens))
        with torch.autocast(h.device.type, enabled=False):
            return self.phi[self.index[s]](self.resize.up(h.float(), s).type_as(h))


class AttnBlock(nn.Module):
    """LlamaGen's, with one product for q, k and v: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = to_rows(self.qkv(self.norm(x))).chunk(3, -1)  # (B, h * w, C) each
        return x + self.proj_out(to_map(F.scaled_dot_product_attention(q, k, v), x.shape[2:]))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the resolution is the lowest."""

    def __init__(self, channels_in: int, channels_out: int, n_blocks: int, lowest: bool):
        super().__init__()
        widths = [channels_in] + [channels_out] * n_blocks
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(channels_out) for _ in range(n_blocks if lowest else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


@register
class VAREncoder(nn.Module):
    """(B, in_channels, H, W) -> (B, z_channels, H/f, W/f) with f = 2 ** (len(mults) - 1).

    mults: from the highest resolution to the lowest, one per level. kernel: of the convolution next to the quantizer.
    """

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        width: int,
        mults: tuple[int, ...],
        n_blocks: int,
        kernel: int,
    ):
        super().__init__()
        self.in_channels, self.z_channels, self.width = in_channels, z_channels, width
        self.mults, self.n_blocks, self.kernel = tuple(mults), n_blocks, kernel
        self.factor = 2 ** (len(mults) - 1)
        widths = [width] + [width * m for m in mults]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths), start=1):
            level = Level(a, b, n_blocks, lowest=i == len(mults))
            level.downsample = Downsample(b) if i < len(mults) else nn.Identity()
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(z_channels, z_channels, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level.downsample(level(x))
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


@register
class VARDecoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_channels, h f, w f). `up.0` is the highest resolution, the last to be run.

    n_blocks: as in the encoder; each level here has one more. mults: from the highest resolution to the lowest.
    """

    def __init__(
        self,
        out_channels: int,
        z_channels: int,
        width: int,
        mults: tuple[int, ...],
        n_blocks: int,
        kernel: int,
    ):
        super().__init__()
        self.out_channels, self.z_channels, self.width = out_channels, z_channels, width
        self.mults, self.n_blocks, self.kernel = tuple(mults), n_blocks, kernel
        self.factor = 2 ** (len(mults) - 1)
        widths = [width * m for m in mults]
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, kernel, padding=kernel // 2)
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, (b, a) in enumerate(pairwise([*widths, widths[-1]])):
            level = Level(a, b, n_blocks + 1, lowest=i == len(mults) - 1)
            level.upsample = Upsample(b) if i else nn.Identity()
            self.up.append(level)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level.upsample(level(x))
        return self.conv_out(F.silu(self.norm_out(x)))
