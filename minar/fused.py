"""A decoding step in few kernels: the same sums as transformer.py and heads.py, for recordings on a GPU.

Decoding one picture is thousands of tiny operations, and each kernel costs a microsecond or two whatever it does. Here
a block is five of them: norm + QKV, rotary + cache + attention, output + residual, norm + SwiGLU, down + residual; and
drawing a token is two. `run` and `sample` stand in for Transformer.forward and CategoricalHead.sample. No weights here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from triton import cdiv, next_power_of_2

from minar import kernels
from minar.cache import KVCache
from minar.heads import CategoricalHead
from minar.transformer import Mask, Transformer
from minar.transformer import attend as plain_attention

FEW = 2  # rows up to which a product is done without tensor cores
SOME = 32  # rows up to which a product is bound by reading the weights; cuBLAS has the others
SHARED = 200 * 2**10  # bytes in which the 16 weight rows of the smallest product on tensor cores must find room
MANY = 512  # rows times heads from which on the card is full, and small programs fill it best
ALONE = 256  # cached slots up to which one program looks at all of them
PART = 128  # beyond that, the slots of each program where rows times heads would leave most of the card idle
IDLE = 64  # rows times heads up to which they do


def run(
    trunk: Transformer,
    x: Tensor,
    mask: Mask = None,
    rope: Tensor | None = None,
    cache: KVCache | None = None,
    keep: int | None = None,
) -> Tensor:
    """Transformer.forward. Attention is fused in a step of a few slots that see all that is cached."""
    B, T, _ = x.shape
    a_step = cache is not None and rope is not None and T <= SOME and (mask is None or (T == 1 and mask == "causal"))
    rows, rope = (
        x.flatten(0, 1).clone(memory_format=torch.contiguous_format),
        rope if rope is None else rope.contiguous(),
    )
    for layer, block in enumerate(trunk.blocks):
        qkv = normed_product(rows, block.norm1, block.attn.qkv.weight).view(B, T, -1)
        if a_step:
            seen = attend(qkv, rope, cache, layer, trunk.n_heads)
        elif rope is not None:
            seen = attend_many(qkv, mask, rope, cache, layer, trunk.n_heads)
        else:
            seen = block.attn.look(qkv, mask, rope, cache, layer)
        add_product(rows, seen.flatten(0, 1), block.attn.out.weight)
        gated = gated_product(rows, block.norm2, block.mlp.gate_up.weight)
        add_product(rows, gated, block.mlp.down.weight)
    if cache is not None:
        cache.advance(T if keep is None else keep)
    return normed(rows, trunk.norm).view_as(x)


def sample(
    head: CategoricalHead,
    h: Tensor,
    h_null: Tensor | None = None,
    cfg: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """CategoricalHead.sample, with the same random numbers. top-k, top-p and greedy decoding go the plain way."""
    if temperature <= 0 or top_k or top_p != 1:
        return CategoricalHead.sample(head, h, h_null, cfg, temperature, top_k, top_p, generator)
    V, rows = head.vocab, (h if h_null is None else torch.cat([h, h_null])).flatten(0, 1)
    logits = _product(rows.contiguous(), head.weight, V) if _is_some(rows) else head(rows)
    clock = torch.empty(*h.shape[:2], V, device=h.device).exponential_(generator=generator)
    winner = torch.empty(h.shape[:2], dtype=torch.long, device=h.device)
    n, shape = winner.numel(), {"GUIDED": h_null is not None, "BLOCK": min(4096, next_power_of_2(V))}
    kernels.race[(n,)](logits, clock, winner, V, cfg, temperature, n, **shape, num_warps=16)
    return winner


def normed_product(x: Tensor, norm: nn.RMSNorm, weight: Tensor) -> Tensor:
    """norm(x) W^T. x: (M, K); weight: (N, K). Returns (M, N)."""
    if not _is_some(x):
        return F.linear(normed(x, norm), weight)
    return _product(x, weight, len(weight), norm=norm)


def gated_product(x: Tensor, norm: nn.RMSNorm, weight: Tensor) -> Tensor:
    """SwiGLU up to its last product: silu(g) * u, where [g, u] = norm(x) W^T. weight: (2N, K). Returns (M, N)."""
    N = len(weight) // 2
    if _is_some(x):
        return _product(x, weight, N, norm=norm, gated=True)
    out = x.new_empty(len(x), N)
    kernels.gate[len(x), cdiv(N, 1024)](F.linear(normed(x, norm), weight), out, N, BLOCK=1024, **_early())
    return out


def add_product(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """out += x W^T, in place. x: (M, K); weight: (N, K); out: (M, N)."""
    if _is_some(x):
        _product(x, weight, len(weight), add_to=out)
    else:
        out.addmm_(x, weight.T)


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """norm(x). x: (M, K)."""
    K, out = x.shape[1], torch.empty_like(x)
    kernels.norm[(len(x),)](x, norm.weight, out, norm.eps, K=K, BLOCK=next_power_of_2(K), **_early())
    return out


def attend(qkv: Tensor, rope: Tensor, cache: KVCache, layer: int, n_heads: int) -> Tensor:
    """Turn queries and keys, put keys and values into the cache, and let all T queries see all n + T slots.

    qkv: (B, T, 3D). rope: (T, hd/2, 2) or (B, T, hd/2, 2) float32. Returns (B, T, D).
    """
    B, T, H, hd = *qkv.shape[:2], n_heads, qkv.shape[2] // n_heads // 3
    keys, values = cache.room(layer, qkv.view(B, T, 3, H, hd)[:, :, 1].transpose(1, 2))
    seen = qkv.new_empty(B, T, H * hd)
    slots = min(256 if B * H < MANY else 32, max(16, next_power_of_2(cache.n)))
    given, where = (qkv, rope, keys, values), (_per_row(rope), cache.n, cache.max_len, hd**-0.5)
    shape = {"H": H, "HD": hd, "D": max(16, next_power_of_2(hd))} | _early()
    if T == 1 and cache.n > ALONE and B * H <= IDLE:
        _attend_in_parts(given, seen, where, shape, cdiv(cache.n, PART))
    elif T == 1:
        kernels.attend_one[B, H](*given, seen, *where, **shape, S=slots, num_warps=max(1, slots // 32))
    else:
        kernels.attend_few[B, H](*given, seen, *where, T, **shape, S=slots, Q=max(16, next_power_of_2(T)))
    return seen


def _attend_in_parts(given: tuple, seen: Tensor, where: tuple, shape: dict, n_parts: int) -> None:
    B, H = len(seen), shape["H"]
    found = seen.new_empty(B, H, n_parts, shape["D"] + 2, dtype=torch.float32)
    kernels.attend_part[B, H, n_parts](*given, found, *where, **shape, S=PART)
    kernels.join[B, H](found, seen, n_parts, **shape, PARTS=next_power_of_2(n_parts))


def attend_many(qkv: Tensor, mask: Mask, rope: Tensor, cache: KVCache | None, layer: int, n_heads: int) -> Tensor:
    """Attention.look for many slots: one kernel turns queries and keys, PyTorch attends. (B, T, 3D) -> (B, T, D)."""
    B, T, H, hd = *qkv.shape[:2], n_heads, qkv.shape[2] // n_heads // 3
    turned = qkv.new_empty(B, T, 2, H, hd)
    shape = {"H": H, "HD": hd, "HEADS": next_power_of_2(H), "D": next_power_of_2(hd)} | _early()
    kernels.turn[B, T](qkv, rope, turned, _per_row(rope), T, **shape)
    (q, k), v = turned.permute(2, 0, 3, 1, 4), qkv.view(B, T, 3, H, hd)[:, :, 2].transpose(1, 2)
    if cache is not None:
        k, v = cache.put(layer, k, v)
    return plain_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def _per_row(rope: Tensor) -> int:
    """From the angles of one row of the batch to those of the next; 0 where all share them."""
    return rope.stride(0) if rope.dim() == 4 else 0


def _product(
    x: Tensor,
    weight: Tensor,
    N: int,
    norm: nn.RMSNorm | None = None,
    gated: bool = False,
    add_to: Tensor | None = None,
) -> Tensor:
    M, K = x.shape
    out = x.new_empty(M, N) if add_to is None else add_to
    reads = K * (2 if gated else 1)  # numbers for each output
    shape = {"K": K, "M": M, "NORM": norm is not None, "GATED": gated, "ADD": add_to is not None} | _early()
    given = x, weight, norm.weight if norm else x, out, N, norm.eps if norm else 0.0
    if M <= FEW:
        shape |= _tile_of_few(N, reads)
        kernels.product[(cdiv(N, shape["BLOCK_N"]),)](*given, **shape, BLOCK_K=min(256, next_power_of_2(K)))
    else:
        shape |= _tile_of_some(reads) | {"ROWS": max(16, next_power_of_2(M))}
        k = min(256, max(16, next_power_of_2(K)))
        kernels.product_dot[(cdiv(N, shape["BLOCK_N"]),)](*given, **shape, BLOCK_K=k)
    return out


def _is_some(x: Tensor) -> bool:
    """Is a product of these rows one for the kernels here?"""
    return len(x) <= FEW or (len(x) <= SOME and 16 * x[0].nbytes <= SHARED)


def _tile_of_few(N: int, reads: int) -> dict:
    """Outputs of a program, which holds all their weights in registers, and its warps: the best tried on an H100."""
    block = 4 if reads <= 1280 and not 1056 < N < 3200 else 2
    return {"BLOCK_N": block, "num_warps": max(1, next_power_of_2(block * reads // 2**13))}


def _tile_of_some(reads: int) -> dict:
    """The same for tensor cores, which want 16 outputs at least."""
    block = 32 if 32 * reads <= 2**15 else 16
    return {"BLOCK_N": block, "num_warps": 4 if block * reads <= 2**15 else 8}


def _early() -> dict:
    """May a kernel start while the one before it ends?"""
    early = torch.version.cuda and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}
