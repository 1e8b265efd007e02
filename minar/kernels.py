"""The blocks of the trunk in few, fused kernels: the same sums as transformer.py, for steps of a few slots on a GPU.

Decoding one picture is thousands of tiny operations, and each kernel costs a microsecond or two whatever it does. Here
a block is five of them: norm + QKV, rotary + cache + attention, output + residual, norm + SwiGLU, down + residual.
With more rows than FEW the products are cuBLAS's. `run` stands in for Transformer.forward; it has no weights.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from minar.cache import KVCache
from minar.heads import CategoricalHead
from minar.transformer import Mask, Transformer

FEW = 2  # rows up to which a product is done without tensor cores
MANY = 512  # rows and heads from which on there is work for the whole card
SOME = 32  # rows up to which a product is bound by reading the weights


def run(
    trunk: Transformer,
    x: Tensor,
    mask: Mask = None,
    rope: Tensor | None = None,
    cache: KVCache | None = None,
    keep: int | None = None,
) -> Tensor:
    """Transformer.forward. What is not a step that sees all that is cached goes the plain way."""
    T = x.shape[1]
    if cache is None or rope is None or not (mask is None or (mask == "causal" and T == 1)):
        return Transformer.forward(trunk, x, mask, rope, cache, keep)
    rows = x.flatten(0, 1).clone()
    for layer, block in enumerate(trunk.blocks):
        qkv = normed_product(rows, block.norm1, block.attn.qkv.weight)
        seen = attend(qkv.view(*x.shape[:2], 3, trunk.n_heads, -1), rope, cache, layer)
        add_product(rows, seen.flatten(0, 1), block.attn.out.weight)
        gated = gated_product(rows, block.norm2, block.mlp.gate_up.weight)
        add_product(rows, gated, block.mlp.down.weight)
    cache.advance(T if keep is None else keep)
    return normed(rows, trunk.norm).view_as(x)


def normed_product(x: Tensor, norm: torch.nn.RMSNorm, weight: Tensor) -> Tensor:
    """norm(x) W^T. x: (M, K); weight: (N, K). Returns (M, N)."""
    if len(x) > SOME:
        return F.linear(normed(x, norm), weight)
    return _launch_product(x, weight, x.new_empty(len(x), len(weight)), norm=norm)


def gated_product(x: Tensor, norm: torch.nn.RMSNorm, weight: Tensor) -> Tensor:
    """SwiGLU up to its last product: silu(g) * u, where [g, u] = norm(x) W^T. weight: (2N, K). Returns (M, N)."""
    if len(x) <= SOME:
        return _launch_product(x, weight, x.new_empty(len(x), len(weight) // 2), norm=norm, gated=True)
    both = F.linear(normed(x, norm), weight)
    out = x.new_empty(len(x), len(weight) // 2)
    _gate[lambda meta: (len(x), triton.cdiv(out.shape[1], meta["BLOCK"]))](both, out, out.shape[1], BLOCK=1024, **_early())
    return out


def add_product(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """out += x W^T, in place. x: (M, K); weight: (N, K); out: (M, N)."""
    if len(x) > SOME:
        out.addmm_(x, weight.T)
    else:
        _launch_product(x, weight, out, add=True)


def normed(x: Tensor, norm: torch.nn.RMSNorm) -> Tensor:
    """norm(x). x: (M, K)."""
    K, out = x.shape[1], torch.empty_like(x)
    _norm[(len(x),)](x, norm.weight, out, norm.eps, K=K, BLOCK=triton.next_power_of_2(K), num_warps=4, **_early())
    return out


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
    rows = h if h_null is None else torch.cat([h, h_null])
    rows = rows.flatten(0, 1)
    if len(rows) <= SOME:
        logits = _launch_product(rows.contiguous(), head.weight, rows.new_empty(len(rows), head.vocab))
    else:
        logits = head(rows)
    clock = torch.empty(*h.shape[:2], head.vocab, device=h.device).exponential_(generator=generator)
    winner = torch.empty(h.shape[:2], dtype=torch.long, device=h.device)
    n, guided = winner.numel(), h_null is not None
    block = min(8192, triton.next_power_of_2(head.vocab))
    _race[(n,)](logits, clock, winner, head.vocab, cfg, temperature, n, GUIDED=guided, BLOCK=block, num_warps=16)
    return winner


def attend(qkv: Tensor, rope: Tensor, cache: KVCache, layer: int) -> Tensor:
    """Turn queries and keys, put keys and values into the cache, and let all T queries see all n + T slots.

    qkv: (B, T, 3, H, hd). rope: (T, hd/2, 2) or (B, T, hd/2, 2) float32. Returns (B, T, H * hd).
    """
    B, T, _, H, hd = qkv.shape
    keys, values = cache.room(layer, qkv[:, :, 1].transpose(1, 2))
    seen = qkv.new_empty(B, T, H * hd)
    per_row = rope.stride(0) if rope.dim() == 4 else 0
    numbers = per_row, cache.n, cache.max_len, hd**-0.5
    shape = {"H": H, "HD": hd, "D": triton.next_power_of_2(hd)}
    slots = min(256 if B * H < MANY else 32, max(16, triton.next_power_of_2(cache.n)))
    if T == 1:
        _attend_one[B, H](qkv, rope, keys, values, seen, *numbers, **shape, S=slots, num_warps=max(1, slots // 32), **_early())
    else:
        queries = max(16, triton.next_power_of_2(T))
        _attend_few[B, H](qkv, rope, keys, values, seen, *numbers, T, **shape, Q=queries, S=slots, num_warps=4, **_early())
    return seen


def _early() -> dict:
    """Let a kernel start while the one before it ends: it reads its weights, then waits. Hopper and later."""
    early = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0) and PDL
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


PDL = True


def _launch_product(x, weight, out, norm=None, gated=False, add=False, tile=None, dot=None) -> Tensor:
    (M, K), N = x.shape, out.shape[1]
    dot = M > FEW if dot is None else dot
    block_n, block_k, warps = tile or _tile(M, N, K, gated, dot)
    kernel, rows = (_product_dot, max(16, triton.next_power_of_2(M))) if dot else (_product, M)
    shape = {"K": K, "M": M, "ROWS": rows, "BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": warps}
    kind = {"NORM": norm is not None, "GATED": gated, "ADD": add}
    scale, eps = (norm.weight, norm.eps) if norm else (x, 0.0)
    kernel[(triton.cdiv(N, block_n),)](x, weight, scale, out, N, eps, **shape, **kind, **_early())
    return out


def _tile(M: int, N: int, K: int, gated: bool, dot: bool) -> tuple[int, int, int]:
    """Outputs of one program, numbers of each read at once, warps: all its weights must fit into registers."""
    block_k = min(256, triton.next_power_of_2(K))
    if dot:
        per = 16 * K * (2 if gated else 1)
        return 16, max(16, block_k), 4 if per <= 32 * 1024 else 8
    block_n = 4 if K * (2 if gated else 1) <= 1280 and not 1056 < N < 3200 else 2
    per = block_n * K * (2 if gated else 1)
    return block_n, block_k, max(1, triton.next_power_of_2(per // 8192))


@triton.jit
def _product(
    x,
    weight,
    scale,
    out,
    N,
    eps,
    K: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weights, ups = (), ()
    for start in tl.static_range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tile = weight + n[:, None] * K + k
        inside = (n[:, None] < N) & (k < K)
        weights += (tl.load(tile, inside, 0.0),)
        if GATED:
            ups += (tl.load(tile + N * K, inside, 0.0),)
    if EARLY:
        gdc_wait()
    for m in tl.static_range(0, M):
        total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        squares = tl.zeros((BLOCK_K,), tl.float32)
        for i in tl.static_range(0, len(weights)):
            k = i * BLOCK_K + tl.arange(0, BLOCK_K)
            value = tl.load(x + m * K + k, k < K, 0.0).to(tl.float32)
            if NORM:
                squares += value * value
                value *= tl.load(scale + k, k < K, 0.0).to(tl.float32)
            total += weights[i].to(tl.float32) * value
            if GATED:
                up += ups[i].to(tl.float32) * value
        shrink = 1.0
        if NORM:
            shrink = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        result = tl.sum(total, 1) * shrink
        if GATED:
            # rounded where the plain path rounds: gate and up are numbers of the model's precision
            gate = result.to(out.dtype.element_ty).to(tl.float32)
            result = gate * tl.sigmoid(gate) * (tl.sum(up, 1) * shrink).to(out.dtype.element_ty).to(tl.float32)
        if ADD:
            result += tl.load(out + m * N + n, n < N, 0.0).to(tl.float32)
        tl.store(out + m * N + n, result, n < N)


@triton.jit
def _product_dot(
    x,
    weight,
    scale,
    out,
    N,
    eps,
    K: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, ROWS)
    weights, ups = (), ()
    for start in tl.static_range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tile = weight + n[:, None] * K + k
        inside = (n[:, None] < N) & (k < K)
        weights += (tl.load(tile, inside, 0.0),)
        if GATED:
            ups += (tl.load(tile + N * K, inside, 0.0),)
    if EARLY:
        gdc_wait()
    total = tl.zeros((BLOCK_N, ROWS), tl.float32)
    up = tl.zeros((BLOCK_N, ROWS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for i in tl.static_range(0, len(weights)):
        k = i * BLOCK_K + tl.arange(0, BLOCK_K)
        value = tl.load(x + m[None] * K + k[:, None], (m[None] < M) & (k[:, None] < K), 0.0)
        if NORM:
            number = value.to(tl.float32)
            squares += tl.sum(number * number, 0)
            value = (number * tl.load(scale + k, k < K, 0.0).to(tl.float32)[:, None]).to(value.dtype)
        total = tl.dot(weights[i], value, total, input_precision="ieee")
        if GATED:
            up = tl.dot(ups[i], value, up, input_precision="ieee")
    if NORM:
        shrink = tl.rsqrt(squares / K + eps)[None]
        total *= shrink
        up *= shrink
    if GATED:
        gate = total.to(out.dtype.element_ty).to(tl.float32)
        total = gate * tl.sigmoid(gate) * up.to(out.dtype.element_ty).to(tl.float32)
    place = out + m[None] * N + n[:, None]
    wanted = (m[None] < M) & (n[:, None] < N)
    if ADD:
        total += tl.load(place, wanted, 0.0).to(tl.float32)
    tl.store(place, total, wanted)


@triton.jit
def _norm(x, scale, out, eps, K: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    k = tl.arange(0, BLOCK)
    by = tl.load(scale + k, k < K, 0.0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    value = tl.load(x + tl.program_id(0) * K + k, k < K, 0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / K + eps) * by
    tl.store(out + tl.program_id(0) * K + k, value, k < K)


@triton.jit
def _gate(both, out, N, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + row * 2 * N + n, n < N, 0.0).to(tl.float32)
    up = tl.load(both + row * 2 * N + N + n, n < N, 0.0).to(tl.float32)
    tl.store(out + row * N + n, gate * tl.sigmoid(gate) * up, n < N)


@triton.jit
def _race(logits, clock, winner, V, cfg, temperature, rows, GUIDED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    who = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        time = tl.load(clock + row * V + v, v < V, 1.0)
        score = tl.load(logits + row * V + v, v < V, -float("inf")).to(tl.float32)
        if GUIDED:
            null = tl.load(logits + (rows + row) * V + v, v < V, -float("inf")).to(tl.float32)
            score = tl.where(v < V, null + cfg * (score - null), -float("inf"))
        score = score / temperature - tl.log(tl.maximum(time, 1.1754943508222875e-38))
        who = tl.where(score > best, v, who)
        best = tl.maximum(best, score)
    first = tl.argmax(best, 0)
    tl.store(winner + row, tl.sum(tl.where(tl.arange(0, BLOCK) == first, who, 0), 0))


@triton.jit
def _turned(x, angles, d, inside):
    """Rotary: x[d] cos - x[d + 1] sin for even d, x[d] cos + x[d - 1] sin for odd."""
    value = tl.load(x + d, inside, 0.0).to(tl.float32)
    other = tl.load(x + (d ^ 1), inside, 0.0).to(tl.float32)
    cos = tl.load(angles + (d // 2) * 2, inside, 0.0)
    sin = tl.load(angles + (d // 2) * 2 + 1, inside, 0.0)
    return value * cos + tl.where(d % 2 == 0, -other, other) * sin


@triton.jit
def _look(q, k, v, known, best, weight, total):
    """Softmax attention goes on over more slots: best score so far, sum of weights, weighted sum of values."""
    score = tl.where(known, tl.sum(q * k.to(tl.float32), 1), -float("inf"))
    top = tl.maximum(best, tl.max(score, 0))
    share = tl.exp(score - top)
    shrink = tl.exp(best - top)
    total = total * shrink + tl.sum(share[:, None] * v.to(tl.float32), 0)
    return top, weight * shrink + tl.sum(share, 0), total


@triton.jit(do_not_specialize=["n"])
def _attend_one(
    qkv,
    rope,
    keys,
    values,
    seen,
    per_row,
    n,
    max_len,
    scale,
    H: tl.constexpr,
    HD: tl.constexpr,
    D: tl.constexpr,
    S: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    s = tl.arange(0, S)
    inside = d < HD
    past = (row * H + head).to(tl.int64) * max_len * HD
    tile = past + s[:, None] * HD + d
    known = (s[:, None] < n) & inside
    k_old = tl.load(keys + tile, known, 0.0)
    v_old = tl.load(values + tile, known, 0.0)
    if EARLY:
        gdc_wait()  # what is cached was written steps ago; the new slot was not

    x = qkv + row * 3 * H * HD + head * HD
    kind = keys.dtype.element_ty
    angles = rope + row * per_row
    q = _turned(x, angles, d, inside).to(kind).to(tl.float32) * scale
    k = _turned(x + H * HD, angles, d, inside).to(kind)
    v = tl.load(x + 2 * H * HD + d, inside, 0.0)
    tl.store(keys + past + n * HD + d, k, inside)
    tl.store(values + past + n * HD + d, v, inside)

    best = tl.sum(q * k.to(tl.float32), 0)
    best, weight, total = _look(q, k_old, v_old, s < n, best, 1.0, v.to(tl.float32))
    for start in range(S, n, S):
        known = (start + s[:, None] < n) & inside
        k_old = tl.load(keys + tile + start * HD, known, 0.0)
        v_old = tl.load(values + tile + start * HD, known, 0.0)
        best, weight, total = _look(q, k_old, v_old, start + s < n, best, weight, total)
    tl.store(seen + row * H * HD + head * HD + d, total / weight, inside)


@triton.jit
def _look_few(q, k, v, known, scale, best, weight, total):
    """`_look` for several queries at once, on tensor cores."""
    score = tl.where(known[None], tl.dot(q, tl.trans(k), input_precision="ieee") * scale, -float("inf"))
    top = tl.maximum(best, tl.max(score, 1))
    share = tl.exp(score - top[:, None])
    shrink = tl.exp(best - top)
    total = total * shrink[:, None] + tl.dot(share.to(v.dtype), v, input_precision="ieee")
    return top, weight * shrink + tl.sum(share, 1), total


@triton.jit(do_not_specialize=["n", "T"])
def _attend_few(
    qkv,
    rope,
    keys,
    values,
    seen,
    per_row,
    n,
    max_len,
    scale,
    T,
    H: tl.constexpr,
    HD: tl.constexpr,
    D: tl.constexpr,
    Q: tl.constexpr,
    S: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        gdc_launch_dependents()
    row, head = tl.program_id(0), tl.program_id(1)
    t = tl.arange(0, Q)
    s = tl.arange(0, S)
    d = tl.arange(0, D)[None]
    past = (row * H + head).to(tl.int64) * max_len * HD
    tile = past + s[:, None] * HD + d
    known = (s[:, None] < n) & (d < HD)
    k_old = tl.load(keys + tile, known, 0.0)
    v_old = tl.load(values + tile, known, 0.0)
    if EARLY:
        gdc_wait()

    inside = (t[:, None] < T) & (d < HD)
    x = qkv + (row * T + t[:, None]) * 3 * H * HD + head * HD
    kind = keys.dtype.element_ty
    angles = rope + row * per_row + t[:, None] * HD
    q = _turned(x, angles, d, inside).to(kind)
    k = _turned(x + H * HD, angles, d, inside).to(kind)
    v = tl.load(x + 2 * H * HD + d, inside, 0.0)
    new = past + (n + t[:, None]) * HD + d
    tl.store(keys + new, k, inside)
    tl.store(values + new, v, inside)

    nothing = tl.zeros((Q,), tl.float32)
    best, weight, total = _look_few(q, k, v, t < T, scale, nothing - float("inf"), nothing, tl.zeros((Q, D), tl.float32))
    best, weight, total = _look_few(q, k_old, v_old, s < n, scale, best, weight, total)
    for start in range(S, n, S):
        known = (start + s[:, None] < n) & (d < HD)
        k_old = tl.load(keys + tile + start * HD, known, 0.0)
        v_old = tl.load(values + tile + start * HD, known, 0.0)
        best, weight, total = _look_few(q, k_old, v_old, start + s < n, scale, best, weight, total)
    to = seen + (row * T + t[:, None]) * H * HD + head * HD + d
    tl.store(to, total / weight[:, None], inside)
