"""The laws: what must hold for every model, sampler, cache and quantizer, whoever wrote it.

They take callables and protocols, no minar class, so that lessons, tests, homework and graders judge with the same
code. A law returns None or raises AssertionError with what is wrong; each fails if it could pass only vacuously. The
laws of models that follow a plan stand in model_laws.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def wake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a lively random value, and set eval mode: at its first values a model can hide a bug.

    Tables N(0, 1), other matrices N(0, 1) / sqrt(fan-in), vectors 1 + N(0, 1) / 10. A zero head would pass any law.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() < 2:
            p.copy_(1 + noise / 10)
        elif id(p) in tables or name.endswith("codebook"):
            p.copy_(noise)
        else:
            p.copy_(noise / math.sqrt(p[0].numel()))
    return model.eval()


def check_equal(f: Callable, g: Callable, *args, atol: float = 1e-5) -> None:
    """f(*args) and g(*args) agree: integers exactly, floats within atol. The results must not be constant."""
    a, b = f(*args).detach(), g(*args).detach()
    assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
    assert a.unique().numel() > 1, "both results are constant: the comparison would prove nothing"
    if a.is_floating_point():
        gap = float((a - b).abs().max())
        assert gap <= atol, f"results differ by up to {gap:.2g}, allowed is {atol:.0e}"
    else:
        wrong = int((a != b).sum())
        assert wrong == 0, f"{wrong} of {a.numel()} integers differ"


@torch.no_grad()
def check_causal(logits: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, label: Tensor, vocab: int) -> None:
    """Row i of logits(tokens, label), (B, t) -> (B, t + 1, V), predicts token i from tokens 0 .. i-1 and the label.

    So changing token i leaves rows 0 .. i as they are (1e-5) and moves every later row (1e-4), and the label moves
    all rows. The usual bug is a shift by one: then row i sees its own answer, and training looks wonderful.
    """
    before = logits(tokens, label)
    assert before.shape[:2] == (len(tokens), tokens.shape[1] + 1), (
        f"logits of {tokens.shape[1]} tokens must have one row more (the first reads the label), got {before.shape[1]}"
    )
    for i in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, i] = (changed[:, i] + 1) % vocab
        moved = (logits(changed, label) - before).abs().amax((0, 2))  # (t + 1,)
        assert moved[: i + 1].max() <= 1e-5, f"token {i} moves row {int(moved[: i + 1].argmax())}: it peeks ahead"
        assert moved[i + 1 :].min() > 1e-4, f"token {i} does not reach row {i + 1 + int(moved[i + 1 :].argmin())}"
    other = logits(tokens, label.roll(1)) if len(label.unique()) > 1 else logits(tokens, (label + 1) % 2)
    moved = (other - before).abs().amax((0, 2))
    assert moved.min() > 1e-4, f"the label does not reach row {int(moved.argmin())}"


@torch.no_grad()
def check_loss(loss: Callable[[Tensor, Tensor], Tensor], logits: Callable, tokens: Tensor, label: Tensor) -> None:
    """loss(tokens, label), (B, N) and (B,) -> (), is the mean cross-entropy in nats of logits(tokens[:, :-1], label).

    check_causal looks at logits only: a loss that is fed its own answers is found here.
    """
    log_p = logits(tokens[:, :-1], label).float().log_softmax(-1)
    expected = -log_p.gather(-1, tokens[..., None]).mean()
    given = loss(tokens, label)
    assert given.shape == (), f"the loss must be one number, got shape {tuple(given.shape)}"
    assert abs(given - expected) < 1e-4, f"the loss is {given:.4f}, its logits give {expected:.4f}: is it shifted?"


@torch.no_grad()
def check_order(logits: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, label: Tensor) -> None:
    """Two tokens that change places change the last row. Judge a model of one layer: with two the causal mask tells.

    A model without positions learns, but slowly, and nothing says so.
    """
    swapped = tokens.clone()
    swapped[:, [0, 1]] = tokens[:, [1, 0]]
    assert not torch.equal(swapped, tokens), "the first two tokens are the same: swapping them proves nothing"
    moved = (logits(swapped, label) - logits(tokens, label))[:, -1].abs().max()
    assert moved > 1e-4, "the order of the tokens does not matter: the model does not know where they stand"


@torch.no_grad()
def check_rope(turn: Callable[[Tensor, Tensor], Tensor], grid: tuple[int, int], head_dim: int) -> None:
    """turn(x, place) rotates (1, 1, T, hd) as if it stood at places (T,), counted row by row on the (h, w) grid.

    The score of a query and a key depends on how many rows and how many columns they are apart, and on nothing else.
    Give a grid with h unlike w: on a square one rows and columns can be mistaken for each other.
    """
    place = torch.arange(grid[0] * grid[1])
    qk = torch.randn(2, 1, 1, 1, head_dim, generator=torch.Generator().manual_seed(0))
    q, k = (turn(x.expand(-1, -1, len(place), -1), place)[0, 0] for x in qk)
    row, column = place // grid[1], place % grid[1]
    rows, columns = row[:, None] - row, column[:, None] - column
    _, apart = torch.stack([rows, columns], -1).flatten(0, 1).unique(dim=0, return_inverse=True)
    score = (q @ k.T).flatten()
    mean = torch.zeros(int(apart.max()) + 1).scatter_reduce(0, apart, score, "mean", include_self=False)
    assert (score - mean[apart]).abs().max() <= 1e-4, "the same way apart, and another score: are the places right?"
    gap = (mean[:, None] - mean).abs().fill_diagonal_(torch.inf)
    assert gap.min() > 1e-5, "two different ways apart give the same score: do rows and columns both turn?"


def check_sampler(draw: Callable[[int], Tensor], p: Tensor, z: float = 5.0) -> None:
    """draw(n) returns n draws from the table p, (V,): each code's share is within z standard errors (n = 20,000).

    Codes of probability 0 must never come. With z = 5 and a fixed seed a right sampler does not fail by chance.
    """
    n = 20_000
    drawn = draw(n)
    assert drawn.shape == (n,) and drawn.dtype == torch.long, f"draw({n}) must be ({n},) long, got {tuple(drawn.shape)}"
    share = torch.bincount(drawn.cpu(), minlength=len(p)) / n
    assert len(share) == len(p), f"drew code {int(drawn.max())}, but there are {len(p)}"
    assert not share[p == 0].any(), f"drew code {int(share.masked_fill(p > 0, 0).argmax())}, whose probability is 0"
    error = (share - p).abs() / (p * (1 - p) / n).sqrt().clamp_min(1e-9)
    worst = int(error.masked_fill(p == 0, 0).argmax())
    assert error[worst] < z or p[worst] == 1, (
        f"code {worst} came {share[worst]:.4f} of the time, its p is {p[worst]:.4f}"
    )


def check_kv(make: Callable[[int], object]) -> None:
    """make(max_len) is a KV cache: put, advance, forget by lowering n, and refuse what does not fit.

    put(layer, k, v) with (B, H, T, hd) returns everything up to the new slots; layers do not mix.
    """
    cache, k, v = make(4), torch.randn(2, 3, 6, 5), torch.randn(2, 3, 6, 5)
    for start, end in ((0, 2), (2, 3)):
        for layer in range(2):
            sign = 1 - 2 * layer
            keys, values = cache.put(layer, sign * k[:, :, start:end], sign * v[:, :, start:end])
            assert torch.equal(keys, sign * k[:, :, :end]), f"after {end} slots layer {layer} returns other keys"
            assert torch.equal(values, sign * v[:, :, :end]), f"after {end} slots layer {layer} returns other values"
        cache.advance(end - start)
        assert cache.n == end, f"{end} slots were put, n says {cache.n}"
    cache.n = 1
    keys, _ = cache.put(0, k[:, :, 5:], v[:, :, 5:])
    assert torch.equal(keys, k[:, :, [0, 5]]), "after n = 1, put must write behind the first slot"
    cache.n = 3
    _refuses(cache, k[:, :, :2], v[:, :, :2], "a cache of 4 slots that holds 3 took 2 more")
    _refuses(cache, k[:1, :, :1], v[:1, :, :1], "a cache of a batch of 2 took a batch of 1")


def _refuses(cache, k: Tensor, v: Tensor, otherwise: str) -> None:
    try:
        cache.put(0, k, v)
    except (ValueError, AssertionError, IndexError):
        return
    raise AssertionError(otherwise)


def check_quantizer(quantizer: nn.Module, z: Tensor) -> None:
    """forward, encode and decode agree, gradients pass straight through, and each loss term pulls where it should.

    z: (B, C, h, w). For a quantizer with a codebook: the commitment term pulls encodings (beta * 2 (z - e) / numel),
    the codebook term pulls codes (2 (e - z) / numel, no beta), measured in `quantizer.space`. `hits`, where there are
    any, count what forward used in training, and nothing else. One with several scales (`sides`) has another loss:
    check_residual judges it.
    """
    quantizer.train()
    z = z.detach().clone().requires_grad_()
    hits = quantizer.hits.clone() if hasattr(quantizer, "hits") else None
    out = quantizer(z)
    tokens = quantizer.encode(z)
    assert tokens.unique().numel() > 1, "one code does everything: the comparison would prove nothing"
    assert torch.equal(tokens, out.tokens), "encode and forward choose different codes"
    decoded = quantizer.decode(tokens, tuple(z.shape[2:]))
    if hits is not None:
        used = torch.bincount(tokens.flatten(), minlength=hits.shape[-1])
        gained = (quantizer.hits - hits).view(-1, len(used)).sum(0)
        assert torch.equal(gained, used), "hits do not count the codes that forward used"
    gap = float((decoded - out.z).detach().abs().max())
    assert gap <= 1e-5, f"decode(encode(z)) is not what the decoder saw in training: they differ by {gap:.2g}"

    weight = torch.randn(out.z.shape, generator=torch.Generator().manual_seed(4711))
    through = _gradient((out.z * weight).sum(), z)
    assert through.abs().mean() > 1e-3, "no gradient reaches the encoder"
    if hasattr(quantizer, "codebook") and not hasattr(quantizer, "sides"):
        _check_codebook(quantizer, z, tokens, out, weight, through)


def _check_codebook(quantizer, z: Tensor, tokens: Tensor, out, weight: Tensor, through: Tensor) -> None:
    rows = quantizer.space(z.flatten(2).transpose(1, 2))
    codes = quantizer.space(quantizer.codebook)
    distance = torch.cdist(rows.detach(), codes.detach().expand(len(rows), -1, -1))
    chosen = distance.gather(-1, tokens[..., None])[..., 0]
    assert (chosen - distance.amin(-1)).max() <= 1e-4, "the code chosen is not the nearest"

    expected = _gradient((rows * weight.flatten(2).transpose(1, 2)).sum(), z)
    _close(through, expected, "the straight-through gradient of z")
    commit = quantizer.beta * (rows - codes[tokens].detach()).square().mean()
    what = f"the commitment gradient (beta {quantizer.beta}) of z"
    _close(_gradient(out.loss, z), _gradient(commit, z), what)
    codebook = (codes[tokens] - rows.detach()).square().mean()
    what = "the codebook gradient (no beta) of the codes"
    _close(_gradient(out.loss, quantizer.codebook), _gradient(codebook, quantizer.codebook), what)


def check_residual(quantizer: nn.Module, z: Tensor) -> None:
    """A residual quantizer of several scales: each takes the nearest codes of what the coarser ones left.

    z: (B, C, side, side). quantizer: sides, codebook, vocab, beta; phi, and which of them scale k uses (which[k]);
    encode(z) -> tokens (B, N); pictures(tokens) -> one picture per scale; decode(tokens) -> the last; so_far(tokens),
    (B, N, C): what each scale reads; forward(z) -> z, tokens, loss; hits (S, V). Wake it first, then no phi is idle.
    """
    quantizer.train()
    z = z.detach().clone().requires_grad_()
    hits, tokens = quantizer.hits.clone(), quantizer.encode(z)
    out = quantizer(z)
    parts = tokens.split([side**2 for side in quantizer.sides], 1)
    with torch.no_grad():
        pictures = [picture.clone() for picture in quantizer.pictures(tokens)]
        assert len(pictures) == len(parts), f"{len(parts)} scales give {len(pictures)} pictures"
        _check_choices(quantizer, z, parts, pictures)
        _check_sums(quantizer, parts, pictures)
        _check_what_is_read(quantizer, tokens, parts, pictures)
        assert torch.equal(out.tokens, tokens), "encode and forward choose different codes"
        for result, what in ((out.z, "forward's z"), (quantizer.decode(tokens), "decode(encode(z))")):
            assert (result - pictures[-1]).abs().max() <= 1e-5, f"{what} is not the last picture"
    for k, (part, gained) in enumerate(zip(parts, quantizer.hits - hits)):
        used = torch.bincount(part.flatten(), minlength=quantizer.vocab)
        assert torch.equal(gained, used), f"hits[{k}] do not count the codes that scale {k} used"
    _check_scale_loss(quantizer, z, tokens, out)


def _check_choices(quantizer, z: Tensor, parts: tuple[Tensor, ...], pictures: list[Tensor]) -> None:
    for k, (side, part) in enumerate(zip(quantizer.sides, parts)):
        left = z - pictures[k - 1] if k else z
        rows = F.adaptive_avg_pool2d(left, side).flatten(2).transpose(1, 2)
        distance = (rows[:, :, None] - quantizer.codebook).norm(dim=-1)  # (B, side^2, V)
        chosen = distance.gather(-1, part[..., None])[..., 0]
        assert part.unique().numel() > 1, f"scale {k} uses one code only: the comparison would prove nothing"
        assert (chosen - distance.amin(-1)).max() <= 1e-4, f"scale {k} does not take the nearest codes of what is left"


def _check_sums(quantizer, parts: tuple[Tensor, ...], pictures: list[Tensor]) -> None:
    """Each picture is the one before and what its own scale adds: codes, enlarged, then smoothed."""
    whole = quantizer.sides[-1]
    for k, (side, part) in enumerate(zip(quantizer.sides, parts)):
        codes = quantizer.codebook[part].transpose(1, 2).unflatten(2, (side, side))
        if side < whole:
            codes = F.interpolate(codes, size=(whole, whole), mode="bicubic")
        conv = quantizer.phi[quantizer.which[k]]
        added = codes / 2 + F.conv2d(codes, conv.weight, conv.bias, padding=1) / 2
        found = pictures[k] - pictures[k - 1] if k else pictures[k]
        gap = float((found - added).abs().max())
        assert gap <= 1e-4, f"scale {k} adds another map to the picture than it should: off by {gap:.2g}"


def _check_what_is_read(quantizer, tokens: Tensor, parts: tuple[Tensor, ...], pictures: list[Tensor]) -> None:
    """Scale k reads the picture after scale k - 1 at its own side, and so nothing of its own tokens."""
    read = quantizer.so_far(tokens)
    assert read.shape[:2] == tokens.shape, f"so_far must give a vector per token, got {tuple(read.shape)}"
    read = read.split([part.shape[1] for part in parts], 1)
    assert not read[0].any(), "scale 0 reads something, though nothing is there yet"
    for k in range(1, len(parts)):
        known = F.adaptive_avg_pool2d(pictures[k - 1], quantizer.sides[k]).flatten(2).transpose(1, 2)
        gap = float((read[k] - known).abs().max())
        assert gap <= 1e-5, f"scale {k} does not read the picture after scale {k - 1}: off by {gap:.2g}"


def _check_scale_loss(quantizer, z: Tensor, tokens: Tensor, out) -> None:
    weight = torch.randn(out.z.shape, generator=torch.Generator().manual_seed(4711))
    _close(_gradient((out.z * weight).sum(), z), weight, "the straight-through gradient of z")
    pictures = torch.stack(list(quantizer.pictures(tokens)))  # (S, B, C, side, side)
    commit = quantizer.beta * (z - pictures.detach()).square().mean()
    _close(_gradient(out.loss, z), _gradient(commit, z), f"the commitment gradient (beta {quantizer.beta}) of z")
    codebook = (pictures - z.detach()).square().mean()
    for p, what in ((quantizer.codebook, "codes"), *((phi.weight, "phi") for phi in quantizer.phi)):
        _close(_gradient(out.loss, p), _gradient(codebook, p), f"the codebook gradient (no beta) of the {what}")


def _gradient(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, zero where y does not depend on x at all."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (g,) = torch.autograd.grad(y, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if g is None else g


def _close(a: Tensor, b: Tensor, what: str) -> None:
    scale = float(b.abs().max())
    assert scale > 0, f"{what} is zero everywhere: nothing to compare"
    off = float((a - b).abs().max()) / scale
    assert off <= 1e-3, f"{what} is off by {off:.1%} of its largest entry"


def check_head(head: nn.Module, width: int, vocab: int, fresh: bool = True) -> None:
    """A categorical head: the first loss is ln V, guidance is null + cfg (cond - null), draws follow the logits.

    head: loss(h, target), logits(h, h_null, cfg), sample(h, h_null, cfg, temperature, top_k, top_p, generator).
    fresh: the head is untrained, so its loss must be ln V. It is woken afterwards.
    """
    generator = torch.Generator().manual_seed(0)
    h, h_null = torch.randn(2, 1, 1, width, generator=generator)
    target = torch.randint(vocab, (4, 3), generator=generator)
    wide = torch.randn(4, 3, width, generator=generator)
    if fresh:
        loss = head.loss(wide, target)
        assert loss.shape == (4, 3), f"loss must be one number per token, (4, 3), got {tuple(loss.shape)}"
        assert (loss - math.log(vocab)).abs().max() < 1e-6, (
            f"the first loss is {loss.mean():.4f}, ln V is {math.log(vocab):.4f}"
        )
    wake(head)
    with torch.no_grad():
        cond, null = head.logits(h), head.logits(h_null)
        assert (cond - null).abs().max() > 1e-2, "logits do not depend on the hidden state"
        for cfg in (0.0, 1.0, 2.5):
            gap = float((head.logits(h, h_null, cfg) - (null + cfg * (cond - null))).abs().max())
            assert gap < 1e-4, f"guided logits at cfg {cfg} are off by {gap:.2g}"
        truth = -torch.log_softmax(head.logits(wide), -1).gather(-1, target[..., None])[..., 0]
        assert (head.loss(wide, target) - truth).abs().max() < 1e-4, "loss is not the cross-entropy of its own logits"
        _check_draws(head, h, cond)


def _check_draws(head: nn.Module, h: Tensor, cond: Tensor) -> None:
    many = torch.randn(64, *h.shape[1:], generator=torch.Generator().manual_seed(2))  # one could be right by luck
    best = head.logits(many).argmax(-1)
    assert torch.equal(head.sample(many, temperature=0), best), "temperature 0 must take the largest logit"
    assert torch.equal(head.sample(many, top_k=1), best), "top_k 1 must take the largest logit"
    assert torch.equal(head.sample(many, top_p=1e-6), best), "a tiny top_p must still keep the likeliest token"

    def draw(n: int, **knobs) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return head.sample(h.expand(n, 1, -1), generator=generator, **knobs)[:, 0]

    assert torch.equal(draw(64), draw(64)), "the generator is not used: one seed must give the same draws twice"
    p = torch.softmax(cond[0, 0] / 0.7, -1)
    check_sampler(lambda n: draw(n, temperature=0.7), p)
    third = p.sort(descending=True).values[2]
    three = torch.where(p >= third, p, 0)
    check_sampler(lambda n: draw(n, temperature=0.7, top_k=3), three / three.sum())
    # A nucleus of exactly three codes at this temperature, whatever it would be at another.
    nucleus = float(three.sum() - third / 2)
    check_sampler(lambda n: draw(n, temperature=0.7, top_p=nucleus), three / three.sum())


@torch.no_grad()
def check_generate(generate: Callable, label: Tensor) -> None:
    """generate(label, cfg, prompt, use_cache, temperature) -> (B, N): a cache and a restart change nothing.

    Greedy, with and without guidance: decoded with a cache == without; completed from its own first tokens == itself;
    a prompt comes back unchanged. Wake the model first.
    """
    for cfg in (1.0, 2.0):
        tokens = generate(label, cfg=cfg, temperature=0)
        n = tokens.shape[1]
        assert tokens.unique().numel() > 2, "the greedy image is all one token: wake the model, or this proves nothing"
        again = generate(label, cfg=cfg, temperature=0, use_cache=False)
        same = (tokens == again).float().mean()
        assert same == 1, f"with a cache {1 - same:.0%} of the tokens differ from decoding without (cfg {cfg})"
        for start in (1, n // 2, n - 1):
            rest = generate(label, cfg=cfg, temperature=0, prompt=tokens[:, :start].clone())
            assert torch.equal(rest, tokens), f"completed from its first {start} tokens, the image differs (cfg {cfg})"
        foreign = (tokens[:, : n // 2] + 1) % (int(tokens.max()) + 1)
        kept = generate(label, cfg=cfg, temperature=0, prompt=foreign)[:, : n // 2]
        assert torch.equal(kept, foreign), "a prompt must come back unchanged"


@torch.no_grad()
def check_guided(generate: Callable, label: Tensor) -> None:
    """generate(label, cfg, temperature) -> (B, N): cfg 1 obeys the label, cfg 0 forgets it, and rows do not mix.

    check_generate compares decoding with itself: halves that change places at every step are found here.
    """
    other = label.roll(1) if len(label.unique()) > 1 else (label + 1) % 2
    for cfg, alike in ((1.0, False), (0.0, True)):
        same = torch.equal(generate(label, cfg=cfg, temperature=0), generate(other, cfg=cfg, temperature=0))
        assert same == alike, f"at cfg {cfg:.0f} another label {'changes the' if alike else 'gives the same'} image"
    for cfg in (1.0, 2.0):
        together = generate(label, cfg=cfg, temperature=0)
        alone = torch.cat([generate(one[None], cfg=cfg, temperature=0) for one in label])
        assert torch.equal(together, alone), f"an image depends on the others of its batch (cfg {cfg})"


@torch.no_grad()
def check_guidance(logits: Callable, null: Callable, tokens: Tensor, label: Tensor) -> None:
    """logits(tokens, null(label)) forgets what the label was, and differs from the logits of every class."""
    free = logits(tokens, null(label))
    assert (free - logits(tokens, null(label.roll(1)))).abs().max() <= 1e-5, "the null label still knows the label"
    assert (free - logits(tokens, label)).abs().amax((1, 2)).min() > 1e-4, "a class gives the logits of the null label"


def check_all_trained(model: nn.Module, *batch: Tensor) -> None:
    """After one loss every trainable parameter has a gradient: without one it is dead weight, or a wire is cut."""
    model.zero_grad()
    model(*batch).backward()
    lost = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lost, f"no gradient reaches {', '.join(lost)}"
