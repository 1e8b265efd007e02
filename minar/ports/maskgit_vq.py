"""The official MaskGIT-VQGAN, the tokenizer of MaskGIT, RAR and TiTok, becomes a minar.VQVAE around its own network.

    vqvae = load(read("maskgit-vqgan-imagenet-f16-256.bin"))
    tokens = vqvae.encode(images)  # (B, 256) from 256-pixel images in [-1, 1]

Four things differ from the network of LlamaGen's tokenizer: no attention; average pooling before each lower resolution;
few biases; and where a block changes the number of channels, its shortcut reads the block's result, not its input.
The official images lie in [0, 1]; here the network shifts them, so that they lie in [-1, 1] as everywhere in minar.

Source: bytedance/1d-tokenizer, modeling/modules/maskgit_vqgan.py. Chang et al., "MaskGIT", 2022. The weights are in
fun-research/TiTok.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar import VQVAE, VectorQuantizer
from minar.lab.checkpoint import CheckpointError, register
from minar.ports.official import State, count, fill, read, rename, shape, unwrap

__all__ = ["load", "read"]

NAMES = {"quantizer.codebook": "quantize.embedding.weight"}


def load(state_dict: dict) -> VQVAE:
    """MaskGIT's tokenizer from its official weights, in eval mode, on their device, in float32.

    `encode` takes (B, 3, H, W) in [-1, 1] and gives (B, N) tokens, `decode` the reverse. All sizes are read off the
    shapes. Raises CheckpointError, naming the official key, for anything missing, unknown or misshaped. The quantizer
    counts as started, so `fit` leaves its codes where they are.
    """
    what = "MaskGIT-VQGAN"
    state = unwrap(state_dict)
    vocab, z_channels = shape(state, "quantize.embedding.weight", 2, what)
    width, in_channels = shape(state, "encoder.conv_in.weight", 4, what)[:2]
    out_channels = shape(state, "decoder.conv_out.weight", 4, what)[0]
    down, up = _widths(state, "encoder.down", what), _widths(state, "decoder.up", what)
    if len(down) != len(up):
        raise CheckpointError(
            f"{what}: has {len(down)} levels in encoder.down and {len(up)} in decoder.up, expected as many"
        )
    _check_groups("encoder.conv_in.weight", width, what)
    n_blocks = count(state, "encoder.down.0.block")
    with torch.device("meta"):  # no random start, since all of it is overwritten
        encoder = MaskGITEncoder(in_channels, z_channels, width, down, n_blocks)
        decoder = MaskGITDecoder(out_channels, z_channels, up, n_blocks)
        vqvae = VQVAE(encoder, decoder, VectorQuantizer(vocab, z_channels))
    fill(vqvae, state, lambda key: [rename(key, NAMES)], what)
    vqvae.quantizer.hits.zero_()
    vqvae.quantizer.started.fill_(True)
    return vqvae


def _widths(state: State, side: str, what: str) -> tuple[int, ...]:
    """Channels of each level, from the highest resolution to the lowest."""
    keys = [f"{side}.{i}.block.0.conv1.weight" for i in range(count(state, side))]
    widths = tuple(shape(state, key, 4, what)[0] for key in keys)
    for key, width in zip(keys, widths):
        _check_groups(key, width, what)
    return widths


def _check_groups(key: str, width: int, what: str) -> None:
    if width % 32 or not width:
        raise CheckpointError(f"{what}: {key!r} gives {width} channels, expected a multiple of 32")


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv(channels_in: int, channels_out: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


class ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = conv(channels_in, channels_out, bias=False)
        self.norm2 = norm(channels_out)
        self.conv2 = conv(channels_out, channels_out, bias=False)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + self.shortcut(x, y)

    def shortcut(self, x: Tensor, y: Tensor) -> Tensor:
        """The released weights were trained with a shortcut of y: x is lost where the number of channels changes."""
        return self.nin_shortcut(y) if hasattr(self, "nin_shortcut") else x


class Level(nn.Module):
    """The blocks of one resolution, and in the decoder the convolution behind doubling it."""

    def __init__(self, channels_in: int, channels_out: int, n_blocks: int, upsample: bool = False):
        super().__init__()
        self.block = blocks([channels_in] + [channels_out] * n_blocks)
        if upsample:
            self.upsample_conv = conv(channels_out, channels_out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return self.upsample_conv(F.interpolate(x, scale_factor=2)) if hasattr(self, "upsample_conv") else x


def blocks(widths: list[int]) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(a, b) for a, b in pairwise(widths)))


@register
class MaskGITEncoder(nn.Module):
    """(B, in_channels, H, W) in [-1, 1] -> (B, z_channels, H/f, W/f) with f = 2 ** (len(widths) - 1).

    width: channels of the first convolution. widths: of each level, from the highest resolution to the lowest.
    """

    def __init__(self, in_channels: int, z_channels: int, width: int, widths: tuple[int, ...], n_blocks: int):
        super().__init__()
        self.in_channels, self.z_channels = in_channels, z_channels
        self.width, self.widths, self.n_blocks = width, tuple(widths), n_blocks
        self.factor = 2 ** (len(widths) - 1)
        self.conv_in = conv(in_channels, width, bias=False)
        self.down = nn.ModuleList(Level(a, b, n_blocks) for a, b in pairwise([width, *widths]))
        self.mid = blocks([widths[-1]] * (n_blocks + 1))
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in((images + 1) / 2)
        for i, level in enumerate(self.down):
            x = level(halve(x) if i else x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


def halve(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


@register
class MaskGITDecoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_channels, h f, w f), about [-1, 1]. widths: as in the encoder.

    `up.0` is the highest resolution, and runs last.
    """

    def __init__(self, out_channels: int, z_channels: int, widths: tuple[int, ...], n_blocks: int):
        super().__init__()
        self.out_channels, self.z_channels = out_channels, z_channels
        self.widths, self.n_blocks = tuple(widths), n_blocks
        self.factor = 2 ** (len(widths) - 1)
        below = [*widths[1:], widths[-1]]
        self.conv_in = conv(z_channels, widths[-1], bias=True)
        self.mid = blocks([widths[-1]] * (n_blocks + 1))
        self.up = nn.ModuleList(Level(a, b, n_blocks, i > 0) for i, (a, b) in enumerate(zip(below, widths)))
        self.norm_out = norm(widths[0])
        self.conv_out = conv(widths[0], out_channels, bias=True)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x))) * 2 - 1
