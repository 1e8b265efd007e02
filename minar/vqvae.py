"""VQ-VAE: an encoder shrinks the image, a quantizer turns each vector into an integer, a decoder paints it back.

Any encoder and decoder with these shapes will do. The loss is L1 + L2 + the quantizer's: LlamaGen and VQGAN add
LPIPS and a discriminator for sharpness, which need pretrained weights and a second network; this one stays alone.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.checks import check_images


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


def stage(channels_in: int, channels_out: int, n_blocks: int) -> nn.Sequential:
    widths = [channels_in] + [channels_out] * n_blocks
    return nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(widths)))


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, z_channels, H/f, W/f) with f = 2 ** (len(mults) - 1)."""

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        width: int = 64,
        mults: tuple[int, ...] = (1, 2, 2),
        n_blocks: int = 2,
    ):
        super().__init__()
        self.in_channels, self.z_channels = in_channels, z_channels
        self.width, self.mults, self.n_blocks = width, tuple(mults), n_blocks
        self.factor = 2 ** (len(mults) - 1)
        widths = [width * m for m in mults]
        layers = [nn.Conv2d(in_channels, width, 3, padding=1)]
        for i, channels in enumerate(widths):
            layers += [stage(widths[max(i - 1, 0)], channels, n_blocks)]
            if i + 1 < len(widths):
                layers += [nn.Conv2d(channels, channels, 3, stride=2, padding=1)]
        layers += [norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], z_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_channels, h f, w f): the encoder mirrored, one block more in each stage."""

    def __init__(
        self,
        out_channels: int,
        z_channels: int,
        width: int = 64,
        mults: tuple[int, ...] = (1, 2, 2),
        n_blocks: int = 2,
    ):
        super().__init__()
        self.out_channels, self.z_channels = out_channels, z_channels
        self.width, self.mults, self.n_blocks = width, tuple(mults), n_blocks
        widths = [width * m for m in reversed(mults)]
        layers = [nn.Conv2d(z_channels, widths[0], 3, padding=1)]
        for i, channels in enumerate(widths):
            layers += [stage(widths[max(i - 1, 0)], channels, n_blocks + 1)]
            if i + 1 < len(widths):
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)]
        layers += [norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class VQVAE(nn.Module):
    """van den Oord et al., "Neural Discrete Representation Learning", 2017."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, quantizer: nn.Module):
        super().__init__()
        if encoder.z_channels != quantizer.channels:
            raise ValueError(
                f"encoder gives {encoder.z_channels} channels, quantizer reads {quantizer.channels}: make equal"
            )
        if getattr(decoder, "z_channels", quantizer.channels) != quantizer.channels:
            raise ValueError(
                f"quantizer gives {quantizer.channels} channels, decoder reads {decoder.z_channels}: make equal"
            )
        self.encoder, self.decoder, self.quantizer = encoder, decoder, quantizer

    def check(self, images: Tensor, wait: bool = False) -> None:
        """Raise unless (B, C, H, W) images can be encoded. wait: look at the values on a GPU, too."""
        check_images(images, self.encoder.in_channels, self.encoder.factor, wait)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, N) long, row by row."""
        self.check(images)
        return self.quantizer.encode(self.encoder(images))

    @torch.no_grad()
    def decode(self, tokens: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, N) long -> (B, C, H, W), clamped to [-1, 1]. size: (h, w) of the token grid if it is not square."""
        return self.decoder(self.quantizer.decode(tokens, size)).clamp(-1, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """decode(encode(images))."""
        self.check(images)
        grid = images.shape[2] // self.encoder.factor, images.shape[3] // self.encoder.factor
        return self.decode(self.encode(images), grid)

    def forward(self, images: Tensor) -> Tensor:
        """() loss of (B, C, H, W) images in [-1, 1]."""
        self.check(images)
        quantized = self.quantizer(self.encoder(images))
        painted = self.decoder(quantized.z).float()
        return F.l1_loss(painted, images) + F.mse_loss(painted, images) + quantized.loss
