"""The laws of models that follow a plan. They touch the public protocol of ARModel only, so that yours can be judged.

Wake the model first (`laws.wake`), on the CPU and in float32. tokens: (B, N[, C]) by position; cond: B conditions, of
which neighbours are unlike. Raster alone proves little: judge with steps of several slots, too.
"""

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from minar.cache import KVCache
from minar.generate import generate
from minar.model import ARModel
from minar.plan import Plan


def check_plan(plan: Plan) -> None:
    """Every position once, permute and unpermute undo each other, the mask is step >= step, and every token is read."""
    N, B = plan.n, 1 if plan.pos.dim() == 1 else len(plan.pos)
    pos = plan.pos.expand(B, N)
    assert sum(plan.sizes) == N and plan.starts == tuple(sum(plan.sizes[:s]) for s in range(plan.n_steps + 1))
    assert torch.equal(pos.sort(-1).values, torch.arange(N).expand(B, N)), "pos must hold every position once"
    x = torch.arange(B * N * 2).view(B, N, 2)
    assert torch.equal(plan.permute(x)[:, 0], x[torch.arange(B), pos[:, 0]]), "slot 0 must hold the token at pos[0]"
    assert torch.equal(plan.unpermute(plan.permute(x)), x), "unpermute must undo permute"
    step = torch.tensor([s for s, size in enumerate(plan.sizes) for _ in range(size)])
    assert torch.equal(plan.step, step), "step must count the sizes"
    middle = plan.starts[plan.n_steps // 2]
    for a, b, mute in ((0, N, 0), (0, N, 2), (middle, N, 0), (middle, N, 2), (0, plan.starts[1], 1)):
        _check_mask(plan.mask(a, b, mute), step, a, b, mute)
    if plan.reads_from is not None:
        _check_reads(plan.reads_from, step)


def _check_mask(mask, step: Tensor, a: int, b: int, mute: int) -> None:
    known = torch.cat([torch.full((mute,), -1), step[:b]])
    wanted = (known if a == 0 else step[a:b])[:, None] >= known
    if mask is None:
        mask = torch.ones_like(wanted)
    elif isinstance(mask, str):
        mask = torch.ones_like(wanted).tril(wanted.shape[1] - wanted.shape[0])
    assert torch.equal(mask, wanted), f"the mask of slots {a}..{b} with {mute} mute vectors is not step >= step"


def _check_reads(reads: Tensor, step: Tensor) -> None:
    of = torch.where(reads < 0, -1, step[reads.clamp_min(0)])
    assert torch.equal(of, step - 1), "a slot must read a slot of the step before, the first step the condition"
    needed = (step < step.max()).nonzero()[:, 0]
    assert torch.isin(needed, reads).all(), "a token is never read"


def _other(tokens: Tensor) -> Tensor:
    """Tokens that differ everywhere."""
    return tokens + 1 if tokens.is_floating_point() else (tokens + 1) % (int(tokens.max()) + 1)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def check_no_peeking(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """Step s depends on the tokens of all steps before and on the condition, and on no token of step s or later."""
    x, prefix = plan.permute(tokens), model.prefix(cond)
    assert (prefix.roll(1, 0) - prefix).abs().amax((1, 2)).min() > 0, "neighbouring rows have the same condition"
    full = model.hidden(x, prefix, plan) if model.cached else None
    for s in range(plan.n_steps):
        a, b = plan.starts[s], plan.starts[s + 1]
        h, later = model.hidden(x, prefix, plan, s, s + 1), x.clone()
        later[:, a:] = _other(x)[:, a:]
        assert _gap(model.hidden(later, prefix, plan, s, s + 1), h) <= 1e-5, f"step {s} sees its own tokens or later"
        if full is not None:
            assert _gap(full[:, a:b], h) <= 1e-4, f"in the full pass step {s} is not what it is alone"
            assert _gap(model.hidden(later, prefix, plan)[:, a:b], h) <= 1e-4, f"in the full pass step {s} peeks"
        for k in range(s):
            earlier = x.clone()
            earlier[:, plan.span(k)] = _other(x)[:, plan.span(k)]
            moved = _gap(model.hidden(earlier, prefix, plan, s, s + 1), h)
            assert moved > 1e-4, f"step {s} does not depend on step {k}"
        moved = (model.hidden(x, prefix.roll(1, 0), plan, s, s + 1) - h).abs().amax((0, 2))
        assert moved.min() > 1e-4, f"slot {a + int(moved.argmin())} does not depend on the condition"


@torch.no_grad()
def check_every_token_counts(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """Each single token before the last step moves the last step; each vector of the prefix moves the first."""
    x, prefix, last = plan.permute(tokens), model.prefix(cond), plan.n_steps - 1
    h = model.hidden(x, prefix, plan, last)
    for i in range(plan.starts[last]):
        changed = x.clone()
        changed[:, i] = _other(x)[:, i]
        assert _gap(model.hidden(changed, prefix, plan, last), h) > 1e-4, f"the token of slot {i} is never used"
    h = model.hidden(x, prefix, plan, 0, 1)
    for i in range(prefix.shape[1]):
        changed = prefix.clone()
        changed[:, i] += 1
        assert _gap(model.hidden(x, changed, plan, 0, 1), h) > 1e-4, f"vector {i} of the condition is never used"


@torch.no_grad()
def check_no_twins(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """Two slots of one step have different hidden states: twins would always draw from the same distribution."""
    x, prefix = plan.permute(tokens), model.prefix(cond)
    assert max(plan.sizes) > 1, "a plan of one slot a step has no twins: judge with another"
    for s in range(plan.n_steps):
        h = model.hidden(x, prefix, plan, s, s + 1)
        apart = torch.cdist(h, h) + torch.eye(h.shape[1])
        assert apart.min() > 1e-3, f"two slots of step {s} are twins: tell each slot where its token will go"


@torch.no_grad()
def check_cache(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """Computed step by step behind a cache, in chunks, or anew after forgetting: always what the full pass computes."""
    x, prefix, K = plan.permute(tokens), model.prefix(cond), plan.n_steps
    room = prefix.shape[1] + 2 * plan.n  # a family may put more slots than it keeps
    full, held, cache = model.hidden(x, prefix, plan), [], KVCache(room)
    for s in range(K):
        seen = x.clone()
        seen[:, plan.starts[s] :] = _other(x)[:, plan.starts[s] :]  # what is not known yet may hold anything
        h = model.hidden(seen, prefix, plan, s, s + 1, cache)
        assert _gap(h, full[:, plan.span(s)]) <= 1e-4, f"with a cache step {s} differs from the full pass"
        held.append(cache.n)
    assert held == sorted(set(held)), f"the cache must grow with every step, it held {held}"
    cuts = sorted({0, K // 3, 2 * K // 3, K})
    chunked = KVCache(room)
    for lo, hi in pairwise(cuts):
        h = model.hidden(x, prefix, plan, lo, hi, chunked)
        assert _gap(h, full[:, plan.starts[lo] : plan.starts[hi]]) <= 1e-4, f"steps {lo}..{hi - 1} in one go differ"
    back = K // 2
    cache.n = held[back - 1] if back else 0
    for s in range(back, K):
        h = model.hidden(x, prefix, plan, s, s + 1, cache)
        assert _gap(h, full[:, plan.span(s)]) <= 1e-4, f"after forgetting, step {s} differs"


@torch.no_grad()
def check_decoding(model: ARModel, cond: Tensor, plan: Plan) -> None:
    """Greedy decoding: cached == not cached; completed from its own first steps == itself; rows do not mix.

    With and without guidance. What lies behind the prompt is erased before it is handed over.
    """
    for cfg in (1.0, 2.0):
        tokens = generate(model, cond, plan, cfg, temperature=0)
        assert tokens.unique().numel() > 2, "the greedy image is all one token: wake the model, or this proves nothing"
        again = generate(model, cond, plan, cfg, temperature=0, use_cache=False)
        assert torch.equal(tokens, again), f"with a cache the tokens differ from decoding without (cfg {cfg})"
        for steps in sorted({1, plan.n_steps // 2, plan.n_steps - 1}):
            by_slot = plan.permute(tokens)
            by_slot[:, plan.starts[steps] :] = by_slot.flatten()[0]
            prompt = plan.unpermute(by_slot)
            rest = generate(model, cond, plan, cfg, prompt=prompt, prompt_steps=steps, temperature=0)
            assert torch.equal(rest, tokens), f"completed from its first {steps} steps, the image differs (cfg {cfg})"
        if plan.pos.dim() == 1:
            alone = torch.cat([generate(model, c[None], plan, cfg, temperature=0) for c in cond])
            assert torch.equal(tokens, alone), f"an image depends on the others of its batch (cfg {cfg})"


@torch.no_grad()
def check_parallel(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """A slot asked alone gets the answer it gets among the others of its step. For AnyOrderAR and MaskedAR."""
    prefix = model.prefix(cond)
    for s in range(plan.n_steps):
        together, a, size = model.hidden(plan.permute(tokens), prefix, plan, s, s + 1), plan.starts[s], plan.sizes[s]
        for j in range(size if size > 1 else 0):
            order = list(range(plan.n))
            order.insert(a, order.pop(a + j))  # slot a + j first of its step, as a step of its own
            other = Plan(plan.pos[..., order], (*plan.sizes[:s], 1, size - 1, *plan.sizes[s + 1 :]))
            alone = model.hidden(other.permute(tokens), prefix, other, s, s + 1)
            assert _gap(alone[:, 0], together[:, j]) <= 1e-4, f"slot {a + j} gets another answer when asked alone"


@torch.no_grad()
def check_guided_step(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """One pass with 2B rows: guidance 1 draws what the condition alone draws, 0 what the null condition draws."""
    x, both = plan.permute(tokens), model.prefix(cond, guided=True)
    null = model.cond.null(cond)
    for s in range(plan.n_steps):
        h = model.hidden(torch.cat([x, x]), both, plan.repeat(2), s, s + 1).chunk(2)
        alone = [model.hidden(x, model.prefix(c), plan, s, s + 1) for c in (cond, null)]
        for half, one, name in zip(h, alone, ("condition", "null condition")):
            assert _gap(half, one) <= 1e-5, f"at step {s} the {name} in the doubled batch is not what it is alone"
        assert _gap(*alone) > 1e-4, f"at step {s} the null condition is the condition"
        for cfg, one in zip((1.0, 0.0), alone):
            drawn = model.draw(x, both, plan, s, cfg=cfg, temperature=0)
            gap = _gap(drawn.float(), model.head.sample(one, temperature=0).float())
            assert gap <= 1e-4, f"at step {s} guidance {cfg:.0f} draws other tokens"


@torch.no_grad()
def check_nll(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """nll is the head's loss of each step's hidden states; the training loss, where it is not random, is its mean."""
    x, prefix = plan.permute(tokens), model.prefix(cond)
    steps = [model.head.loss(model.hidden(x, prefix, plan, s, s + 1), x[:, plan.span(s)]) for s in range(plan.n_steps)]
    assert _gap(model.nll(tokens, cond, plan), torch.cat(steps, 1)) <= 1e-4, "nll is not the loss of the steps"
    if model.cached:
        mean, forgotten = torch.cat(steps, 1).mean(), model.nll(tokens, model.cond.null(cond), plan).mean()
        assert abs(model(tokens, cond, plan, p_drop=0.0) - mean) <= 1e-4, "the training loss is not the mean nll"
        assert abs(model(tokens, cond, plan, p_drop=1.0) - forgotten) <= 1e-4, "with p_drop 1 a condition is remembered"


@torch.no_grad()
def check_same_as_gpt(model: ARModel, gpt, tokens: Tensor, label: Tensor, plan: Plan) -> None:
    """With a GPT's weights, a zero target and the raster plan: its loss (1e-5) and its greedy tokens (exactly)."""
    zero = {"target.weight": torch.zeros_like(model.target.weight)}
    model.load_state_dict(gpt.state_dict() | zero)
    gap = abs(float(model(tokens, label, plan, p_drop=0.0) - gpt(tokens, label, p_drop=0.0)))
    assert gap <= 1e-5, f"the losses differ by {gap:.2g}"
    for cfg in (1.0, 2.0):
        ours = generate(model, label, plan, cfg, temperature=0)
        assert torch.equal(ours, gpt.generate(label, cfg, temperature=0)), f"the greedy images differ (cfg {cfg})"


def check_meta(model: ARModel, tokens: Tensor, cond: Tensor, plan: Plan) -> None:
    """Loss, gradients and decoding run where tensors have shapes but no values: nothing waits for a value.

    What waits for one on a GPU makes the host stand still at every step, and cannot be recorded.
    """
    ghost = copy.deepcopy(model).to("meta")
    tokens, cond, plan = tokens.to("meta"), cond.to("meta"), plan.to("meta")
    try:
        ghost(tokens, cond, plan).backward()
        drawn = generate(ghost, cond, plan, 2.0)
    except (NotImplementedError, RuntimeError) as error:
        raise AssertionError(f"needs values where there are none: {str(error).splitlines()[0]}") from error
    assert drawn.shape[:2] == (len(cond), plan.n) and drawn.device.type == "meta", "the tokens are on another device"


def check_one_graph(model: ARModel, tokens: Tensor, cond: Tensor, draw_plan: Callable[[int], Plan]) -> None:
    """torch.compile makes one graph of the training loss, and fresh plans of the same steps need no other."""
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model.nll, backend=counter, fullgraph=True, dynamic=False)
    for seed in range(3):
        plan = draw_plan(seed)
        try:
            gap = _gap(compiled(tokens, cond, plan), model.nll(tokens, cond, plan))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise AssertionError(f"is not one graph: {str(error).splitlines()[0]}") from error
        assert gap <= 1e-4, "compiled, the loss is another"
    assert counter.frame_count == 1, f"{counter.frame_count} graphs for three plans of the same steps"
