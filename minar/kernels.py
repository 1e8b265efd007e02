"""Triton kernels of a decoding step; fused.py calls them, and says which plain code each stands for.

EARLY (Hopper and later): a kernel starts while the one before it ends. It reads what is old, weights and the cache of
earlier steps, into registers, waits for the other to be done, and goes on with what that one has written.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def product(
    x,
    weight,
    scale,
    out,
    N,
    eps,
    K: tl.constexpr,
    M: tl.constexpr,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EARLY: tl.constexpr,
):
    """out (M, N) [+]= norm(x) W^T, gated or not: a program has BLOCK_N outputs of every row. For one row or two."""
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
        tl.store(out + m * N + n, result.to(out.dtype.element_ty), n < N)


@triton.jit
def product_dot(
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
    """The same on tensor cores, which want at least 16 rows: for some rows, ROWS with those that are made up."""
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
    tl.store(place, total.to(out.dtype.element_ty), wanted)


@triton.jit
def norm(x, scale, out, eps, K: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """RMSNorm of (M, K): a program has a row."""
    k = tl.arange(0, BLOCK)
    by = tl.load(scale + k, k < K, 0.0).to(tl.float32)
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    value = tl.load(x + tl.program_id(0) * K + k, k < K, 0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 0) / K + eps) * by
    tl.store(out + tl.program_id(0) * K + k, value.to(out.dtype.element_ty), k < K)


@triton.jit
def gate(both, out, N, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """silu(g) * u of (M, 2N) = [g, u]."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both + row * 2 * N + n, n < N, 0.0).to(tl.float32)
    up = tl.load(both + row * 2 * N + N + n, n < N, 0.0).to(tl.float32)
    tl.store(out + row * N + n, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), n < N)


@triton.jit
def race(logits, clock, winner, V, cfg, temperature, rows, GUIDED: tl.constexpr, BLOCK: tl.constexpr):
    """sampling.race on logits: the largest of guided logits / temperature - log clock. A program has a row."""
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
def turn(
    qkv,
    rope,
    turned,
    per_row,
    T,
    H: tl.constexpr,
    HD: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Queries and keys of one slot, turned: qkv (B, T, 3, H, HD) -> turned (B, T, 2, H, HD)."""
    row, t = tl.program_id(0).to(tl.int64), tl.program_id(1)
    h = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, D)[None]
    inside = (h < H) & (d < HD)
    angles = rope + row * per_row + t * HD + h * 0
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    for i in tl.static_range(0, 2):
        x = qkv + ((row * T + t) * 3 + i) * H * HD + h * HD
        to = turned + ((row * T + t) * 2 + i) * H * HD + h * HD
        tl.store(to + d, _turned(x, angles, d, inside).to(turned.dtype.element_ty), inside)


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
def attend_one(
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
    """One query, row and head: turn, cache, attend. S cached slots are looked at at a time."""
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
    tl.store(seen + row * H * HD + head * HD + d, (total / weight).to(kind), inside)


@triton.jit(do_not_specialize=["n"])
def attend_part(
    qkv,
    rope,
    keys,
    values,
    found,
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
    """`attend_one` shared by many programs: each looks at S cached slots, the first at the new one as well.

    found: (B, H, parts, D + 2) float32, the weighted sum of values, the sum of weights, the best score.
    """
    if EARLY:
        gdc_launch_dependents()
    row, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d = tl.arange(0, D)
    s = part * S + tl.arange(0, S)
    inside = d < HD
    past = (row * H + head).to(tl.int64) * max_len * HD
    tile = past + s[:, None] * HD + d
    known = (s[:, None] < n) & inside
    k_old = tl.load(keys + tile, known, 0.0)
    v_old = tl.load(values + tile, known, 0.0)
    if EARLY:
        gdc_wait()

    x = qkv + row * 3 * H * HD + head * HD
    kind = keys.dtype.element_ty
    angles = rope + row * per_row
    q = _turned(x, angles, d, inside).to(kind).to(tl.float32) * scale
    is_new = tl.where(inside, part, 1) == 0
    k = _turned(x + H * HD, angles, d, inside).to(kind)
    v = tl.load(x + 2 * H * HD + d, inside, 0.0)
    tl.store(keys + past + n * HD + d, k, is_new)
    tl.store(values + past + n * HD + d, v, is_new)

    best = tl.where(part == 0, tl.sum(q * k.to(tl.float32), 0), -float("inf"))
    weight = (part == 0).to(tl.float32)
    best, weight, total = _look(q, k_old, v_old, s < n, best, weight, v.to(tl.float32) * weight)
    to = found + ((row * H + head) * tl.num_programs(2) + part) * (D + 2)
    tl.store(to + d, total)
    tl.store(to + D, weight)
    tl.store(to + D + 1, best)


@triton.jit
def join(
    found,
    seen,
    n_parts,
    H: tl.constexpr,
    HD: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """What `attend_part` found in all parts, PARTS with those that are made up, as one softmax."""
    if EARLY:
        gdc_launch_dependents()
        gdc_wait()
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    part = tl.arange(0, PARTS)
    here = found + ((row * H + head) * n_parts + part) * (D + 2)
    best = tl.load(here + D + 1, part < n_parts, -float("inf"))
    share = tl.exp(best - tl.max(best, 0))
    weight = tl.sum(share * tl.load(here + D, part < n_parts, 0.0), 0)
    total = tl.load(here[:, None] + d, (part < n_parts)[:, None], 0.0)
    out = tl.sum(share[:, None] * total, 0) / weight
    tl.store(seen + row * H * HD + head * HD + d, out.to(seen.dtype.element_ty), d < HD)


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
def attend_few(
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
    """T queries of a row and head, who see each other: turn, cache, attend. Q >= T, at least 16 for tensor cores."""
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
    best, weight, total = _look_few(
        q, k, v, t < T, scale, nothing - float("inf"), nothing, tl.zeros((Q, D), tl.float32)
    )
    best, weight, total = _look_few(q, k_old, v_old, s < n, scale, best, weight, total)
    for start in range(S, n, S):
        known = (start + s[:, None] < n) & (d < HD)
        k_old = tl.load(keys + tile + start * HD, known, 0.0)
        v_old = tl.load(values + tile + start * HD, known, 0.0)
        best, weight, total = _look_few(q, k_old, v_old, start + s < n, scale, best, weight, total)
    to = seen + (row * T + t[:, None]) * H * HD + head * HD + d
    tl.store(to, (total / weight[:, None]).to(kind), inside)
