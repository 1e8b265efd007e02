"""Fast decoding: the same model and the same steps, recorded once as CUDA graphs and replayed.

A small kernel takes the card a microsecond and the host ten to start it. A recording starts thousands at once. It is
made of `model.draw`, step by step, so there is no second model to keep equal: every family, every plan, each step with
the live prefix of its cache. What it writes are the tokens of `generate`.

On a CPU there is nothing to record: it is `generate` in inference mode, with the products of few rows turned round.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minar.cache import KVCache
from minar.generate import fill_prompt
from minar.generate import generate as plain
from minar.gpt import GPT
from minar.heads import CategoricalHead
from minar.model import ARModel, Scale, is_guided
from minar.next_step import NextStepAR
from minar.plan import Plan, raster
from minar.transformer import Transformer

FEW = 8  # rows up to which a product on the CPU is turned round
SEGMENT = 32  # steps in one graph
# cuDNN's attention would prepare itself anew for every length of the prefix, a tenth of a second each
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
KEPT = 8  # recordings of one model; the oldest goes first

_recordings: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
_followers: WeakKeyDictionary[GPT, NextStepAR] = WeakKeyDictionary()


def generate(
    model: ARModel | GPT,
    cond: Tensor,
    plan: Plan | None = None,
    cfg: Scale = 1.0,
    prompt: Tensor | None = None,
    prompt_steps: int = 0,
    use_cache: bool = True,
    progress: bool = False,
    fused: bool = True,
    **knobs,
) -> Tensor:
    """The tokens of minar.generate, or of GPT.generate: the same arguments, the same result, sooner.

    A GPT needs no plan; its prompt is (B, n), as in GPT.generate. On a GPU the first call with a model, batch size,
    plan, cfg and knobs records; later ones replay. Weights that change in place are seen; where they have moved, it
    records anew. fused=False records the kernels of PyTorch instead of minar's own. Raises ValueError for a model in
    training mode, RuntimeError with the bytes needed if memory is short.
    """
    if model.training:
        raise ValueError(f"the {type(model).__name__} is in training mode: call model.eval() before decoding")
    if isinstance(model, GPT):
        model, plan, prompt, prompt_steps = _as_follower(model, cond, prompt)
    where = next(model.parameters()).device
    if where.type != "cuda" or not use_cache:
        with torch.inference_mode(), _few_rows(model):
            tokens = plain(model, cond, plan, cfg, prompt, prompt_steps, use_cache, progress, **knobs)
        return tokens.clone()  # outside: what is made in inference mode cannot be trained on
    with torch.no_grad(), torch.cuda.device(where):
        return _replayed(model, cond, plan, cfg, prompt, prompt_steps, fused, knobs)


def _as_follower(gpt: GPT, label: Tensor, prompt: Tensor | None) -> tuple[NextStepAR, Plan, Tensor | None, int]:
    """A GPT as the NextStepAR that it is: the same modules, a target that stays zero."""
    if gpt not in _followers:
        parts = gpt.trunk, gpt.embed, gpt.cond, gpt.head, gpt.grid
        _followers[gpt] = NextStepAR(*parts).eval()
    follower = _followers[gpt]
    follower.target.to(gpt.head.weight.device, gpt.head.weight.dtype)
    if prompt is None:
        return follower, raster(*gpt.grid), None, 0
    whole = gpt.head.empty(len(label), gpt.n_tokens)
    return follower, raster(*gpt.grid), whole, gpt.fill_prompt(whole, prompt)


@contextmanager
def _few_rows(model: nn.Module) -> Iterator[None]:
    """For a handful of vectors x, W x^T: the CPU's libraries read W about twice as fast as for x W^T."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for linear in linears:
        linear.forward = partial(_product, linear)
    try:
        yield
    finally:
        for linear in linears:
            del linear.forward


def _product(linear: nn.Linear, x: Tensor) -> Tensor:
    rows = x.flatten(0, -2)
    if len(rows) > FEW or linear.bias is not None:
        return F.linear(x, linear.weight, linear.bias)
    return (linear.weight @ rows.T).T.contiguous().unflatten(0, x.shape[:-1])


@contextmanager
def _fewer_kernels(model: ARModel, fused: bool = True) -> Iterator[Tensor]:
    """The same model in fewer kernels: trunk and sampling by Triton where they are minar's own, angles from a table.

    Yields the table: a recording reads it as long as it lives.
    """
    places = torch.arange(model.n_tokens + 1, device=model.target.weight.device)
    table = model.rope(torch.where(places < model.n_tokens, places, -1))  # the last row, [-1], stands nowhere
    stand_ins = [(model, "rope", table.__getitem__)]
    if fused and fusable(places.device):
        from minar import fused as kernels

        if type(model.trunk) is Transformer:
            stand_ins.append((model.trunk, "forward", partial(kernels.run, model.trunk)))
        if type(model.head) is CategoricalHead:
            stand_ins.append((model.head, "sample", partial(kernels.sample, model.head)))
    for module, name, function in stand_ins:
        setattr(module, name, function)
    try:
        yield table
    finally:
        for module, name, _ in stand_ins:
            delattr(module, name)


def fusable(device: torch.device) -> bool:
    """Is there Triton, a card that it is good for (Ampere or later), and no autocast, which the kernels know not of?"""
    if not find_spec("triton") or torch.is_autocast_enabled(device.type):
        return False
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass
class Recording:
    """Graphs, and the memory that they read and write."""

    graphs: list[torch.cuda.CUDAGraph]
    tokens: Tensor
    cond: Tensor
    plan: Plan
    generator: torch.Generator
    weights: tuple[int, ...]
    held: tuple  # what the graphs read besides: prefix and cache, left there by earlier graphs, and angles


def _replayed(
    model: ARModel, cond: Tensor, plan: Plan, cfg: Scale, prompt, prompt_steps: int, fused: bool, knobs: dict
) -> Tensor:
    model.cond.check(cond, wait=True)
    model.check_plan(plan, len(cond))
    cond = cond.to(model.target.weight.device)
    asked = knobs.pop("generator", None) or torch.cuda.default_generators[torch.cuda.current_device()]
    key = (tuple(cond.shape), plan.sizes, tuple(plan.pos.shape), cfg, prompt_steps, fused, tuple(sorted(knobs.items())))
    known = _recordings.setdefault(model, {})
    recording = known.get(key)
    if recording is None or recording.weights != _addresses(model):
        known.pop(key, None)
        while len(known) >= KEPT:
            known.pop(next(iter(known)))
        try:
            recording = known[key] = _record(model, cond, plan.to(cond.device), cfg, prompt_steps, fused, knobs)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(_too_big(model, len(cond), plan, guided=is_guided(cfg))) from error

    recording.plan.copy_(plan)
    recording.cond.copy_(cond)
    fill_prompt(recording.tokens, model, recording.plan, prompt, prompt_steps)
    recording.generator.set_state(asked.get_state())
    for graph in recording.graphs:
        graph.replay()
    asked.set_state(recording.generator.get_state())
    return recording.plan.unpermute(recording.tokens)


def _record(
    model: ARModel, cond: Tensor, plan: Plan, cfg: Scale, prompt_steps: int, fused: bool, knobs: dict
) -> Recording:
    tokens, cond, plan = model.head.empty(len(cond), plan.n), cond.clone(), plan.clone()
    generator, pool = torch.Generator(cond.device), torch.cuda.graph_pool_handle()
    guided, graphs = is_guided(cfg), []
    knobs = {**knobs, "generator": generator}
    with sdpa_kernel(ATTENTION), _fewer_kernels(model, fused) as table:
        warm = model.prefix(cond, guided)
        first = min(prompt_steps, max(0, plan.n_steps - 2))
        for s in range(first, plan.n_steps)[:2]:  # the second may be the first that reads a token
            model.draw(tokens, warm, plan, s, None, cfg, **knobs)
        cache, prefix = KVCache(warm.shape[1] + plan.n) if model.cached else None, None
        for lo in range(prompt_steps, plan.n_steps, SEGMENT):
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(generator)
            with torch.cuda.graph(graph, pool=pool):
                prefix = model.prefix(cond, guided) if prefix is None else prefix
                for s in range(lo, min(lo + SEGMENT, plan.n_steps)):
                    tokens[:, plan.span(s)] = model.draw(tokens, prefix, plan, s, cache, cfg, **knobs)
            graphs.append(graph)
    held = prefix, cache, table
    return Recording(graphs, tokens, cond, plan, generator, _addresses(model), held)


def _too_big(model: ARModel, batch: int, plan: Plan, guided: bool) -> str:
    """What decoding needs at least, and the batch for which that is there."""
    rows, weight = 2 if guided else 1, next(model.parameters())
    row = rows * plan.n * model.trunk.width * 2 * model.trunk.n_layers * weight.element_size()
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    fits = max(0, int(0.7 * free / row))
    needed = f"keys and values of {batch} rows take {batch * row / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return f"out of GPU memory: {needed}: try a batch of {fits}"


def _addresses(model: nn.Module) -> tuple[int, ...]:
    return tuple(x.data_ptr() for x in (*model.parameters(), *model.buffers()))
