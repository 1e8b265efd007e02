"""The trunk: the LlamaGen block (RMSNorm, rotary attention, SwiGLU; no biases, no dropout), repeated.

It knows nothing of images, classes or orders. `mask` says who looks at whom, `rope` where each slot stands,
`cache` what is already known. Sun et al., "Autoregressive Model Beats Diffusion: LlamaGen", 2024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minar.cache import KVCache

Mask = Tensor | str | None  # bool tensor (True = may look), "causal", or None (sees everything)


def rope_2d(place: Tensor, grid_width: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """Rotary angles of places on a grid: the first half of the channels turns with the row, the second with the column.

    place: (..., T) long, row * grid_width + column; -1 for a slot that stands nowhere (a class token).
    Returns (..., T, head_dim / 2, 2) float32: cos and sin. A place of -1 gets cos = sin = 0, not the identity:
    LlamaGen's released weights expect queries and keys of the class token to vanish.
    """
    if head_dim % 4:
        raise ValueError(f"rope_2d needs a head_dim divisible by 4 (pairs for rows and for columns), got {head_dim}")
    theta = base ** (-4 * torch.arange(head_dim // 4, device=place.device) / head_dim)
    row, column = place // grid_width, place % grid_width
    angle = torch.cat([row[..., None] * theta, column[..., None] * theta], -1)  # (..., T, hd/2)
    return torch.stack([angle.cos(), angle.sin()], -1) * (place >= 0)[..., None, None]


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn each adjacent pair of channels (2j, 2j+1) by its angle.

    x: (..., B, H, T, hd). rope: (T, hd/2, 2), or (B, T, hd/2, 2) where rows of the batch stand in different places.
    """
    cos, sin = (rope if rope.dim() == 3 else rope[:, None]).split(1, -1)
    pairs = x.float().unflatten(-1, (-1, 2))
    return (pairs * cos + pairs.flip(-1) * torch.cat([-sin, sin], -1)).flatten(-2).type_as(x)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Softmax attention. q: (B, H, T, hd); k, v: (B, H, S, hd), S >= T. Returns (B, H, T, hd).

    "causal" means that the queries are the last T of S slots: PyTorch's own causal flag aligns them with the
    first T, which is wrong as soon as a cache holds something.
    """
    T, S = q.shape[-2], k.shape[-2]
    if not isinstance(mask, str):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if T == 1 or T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
    below = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=below)


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Mask, rope: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        return self.out(self.look(self.qkv(x), mask, rope, cache, layer))

    def look(self, qkv: Tensor, mask: Mask, rope: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """What lies between the two products: (B, T, 3D) -> (B, T, D)."""
        qk, v = qkv.unflatten(-1, (3, self.n_heads, -1)).split((2, 1), 2)  # (B, T, 2 and 1, H, hd)
        qk, v = qk.permute(2, 0, 3, 1, 4), v.squeeze(2).transpose(1, 2)
        q, k = qk if rope is None else rotate(qk, rope)  # (B, H, T, hd) each
        if cache is not None:
            k, v = cache.put(layer, k, v)
        return attend(q, k, v, mask).transpose(1, 2).flatten(2)


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.attn = Attention(width, n_heads)
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, mask: Mask, rope: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.attn(self.norm1(x), mask, rope, cache, layer)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """`n_layers` blocks and a last norm: (B, T, D) -> (B, T, D).

    hidden: width of the SwiGLU; by default LlamaGen's rule, 8/3 of the width rounded up to a multiple of 256.
    """

    def __init__(self, width: int, n_layers: int, n_heads: int, hidden: int | None = None):
        super().__init__()
        if width % n_heads or (width // n_heads) % 4:
            raise ValueError(f"width {width} must split into {n_heads} heads of a multiple of 4 channels")
        self.width, self.n_layers, self.n_heads = width, n_layers, n_heads
        self.hidden = hidden or 256 * -(-(8 * width // 3) // 256)
        self.blocks = nn.ModuleList(Block(width, n_heads, self.hidden) for _ in range(n_layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=0.02)

    def forward(
        self,
        x: Tensor,
        mask: Mask = None,
        rope: Tensor | None = None,
        cache: KVCache | None = None,
        keep: int | None = None,
    ) -> Tensor:
        """x: (B, T, D), the T new slots. keep: how many of them the cache remembers afterwards (default: all)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, rope, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1] if keep is None else keep)
        return self.norm(x)
