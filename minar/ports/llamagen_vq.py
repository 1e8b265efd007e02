"""The network of LlamaGen's tokenizer, under the names of its official keys, so that loading needs no table of layers.

Three things differ from minar's own Encoder and Decoder: attention at the lowest resolution and in the middle, zeros
only on the right and below before halving, and two 1x1 convolutions (quant_conv, post_quant_conv) between the network
and the quantizer, which belong to the encoder and to the decoder here.

Source: FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py. Sun et al., 2024, section 3.1.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from minar.lab import checkpoint
from minar.quantizers import to_map, to_rows


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class AttnBlock(nn.Module):
    """Every place looks at every other, with a single head as wide as the map: (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (to_rows(conv(y)) for conv in (self.q, self.k, self.v))  # (B, h * w, C) each
        return x + self.proj_out(to_map(F.scaled_dot_product_attention(q, k, v), x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the resolution is the lowest."""

    def __init__(self, channels_in: int, channels_out: int, n_blocks: int, lowest: bool):
        super().__init__()
        widths = [channels_in] + [channels_out] * n_blocks
        self.res = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(channels_out) for _ in range(n_blocks if lowest else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return x


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels))


@checkpoint.register
class LlamaGenEncoder(nn.Module):
    """(B, in_channels, H, W) -> (B, z_channels, H/f, W/f) with f = 2 ** (len(mults) - 1).

    z_channels: what the quantizer reads (8), behind quant_conv. latent_channels: what the network gives it (256, which
    the official code calls z_channels).
    """

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        latent_channels: int,
        width: int,
        mults: tuple[int, ...],
        n_blocks: int,
    ):
        super().__init__()
        self.in_channels, self.z_channels, self.latent_channels = in_channels, z_channels, latent_channels
        self.width, self.mults, self.n_blocks = width, tuple(mults), n_blocks
        self.factor = 2 ** (len(mults) - 1)
        widths = [width] + [width * m for m in mults]
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(widths), start=1):
            level = Level(a, b, n_blocks, lowest=i == len(mults))
            level.downsample = Downsample(b) if i < len(mults) else nn.Identity()
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(latent_channels, z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.conv_blocks:
            x = level.downsample(level(x))
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


@checkpoint.register
class LlamaGenDecoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_channels, h f, w f). `conv_blocks.0` is the lowest resolution.

    n_blocks: as in the encoder; each level here has one more. mults: from the highest resolution to the lowest.
    """

    def __init__(
        self,
        out_channels: int,
        z_channels: int,
        latent_channels: int,
        width: int,
        mults: tuple[int, ...],
        n_blocks: int,
    ):
        super().__init__()
        self.out_channels, self.z_channels, self.latent_channels = out_channels, z_channels, latent_channels
        self.width, self.mults, self.n_blocks = width, tuple(mults), n_blocks
        self.factor = 2 ** (len(mults) - 1)
        widths = [width * m for m in reversed(mults)]
        self.post_quant_conv = nn.Conv2d(z_channels, latent_channels, 1)
        self.conv_in = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise([widths[0], *widths]), start=1):
            level = Level(a, b, n_blocks + 1, lowest=i == 1)
            level.upsample = Upsample(b) if i < len(mults) else nn.Identity()
            self.conv_blocks.append(level)
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in self.conv_blocks:
            x = level.upsample(level(x))
        return self.conv_out(F.silu(self.norm_out(x)))
