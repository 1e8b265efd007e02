"""What an official file of weights holds, and how it gets into a model of ours, exact about every key."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from minar.lab.checkpoint import CheckpointError

State = dict[str, Tensor]


def read(path: str | Path) -> dict:
    """What an official .pt file holds, on the CPU, as `unwrap` and both loaders take it.

    A .pt file is a pickle, which can run code when it is opened. Only tensors, plain containers and the
    argparse.Namespace that LlamaGen's training script saves are let through; all else raises CheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; official weights are files such as c2i_B_256.pt")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may raise anything
        raise CheckpointError(f"{path}: {_what_is_wrong(error)}") from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: holds a {type(held).__name__}, expected a dict of weights")
    return held


def _what_is_wrong(error: Exception) -> str:
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"refused, because it asks for {named[1]}: a file of weights needs tensors and plain containers only"
    return f"truncated or not a PyTorch file ({type(error).__name__}); fetch it again"


def unwrap(held: dict) -> State:
    """The state dict in what `read` returns, wherever the training script has put it.

    DDP saves it under "model", DeepSpeed under "module", others under "state_dict"; FSDP (XXL and 3B) saves it bare.
    An "ema" beside "model" is left alone, as the official samplers do. Raises CheckpointError if none is found.
    """
    if not isinstance(held, dict):
        raise CheckpointError(f"official weights: expected a dict of tensors, got a {type(held).__name__}")
    state = next((held[k] for k in ("model", "module", "state_dict") if isinstance(held.get(k), dict)), held)
    if not state:
        raise CheckpointError("official weights: the dict is empty")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"official weights: {key!r} is a {type(value).__name__}, not a tensor: pass what `read` gave, or "
                'the state dict in it (looked for "model", "module", "state_dict")'
            )
    return state


def shape(state: State, key: str, dims: int, what: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{what}: misses {key!r}: is it another model?")
    if state[key].dim() != dims:
        raise CheckpointError(f"{what}: {key!r} is {tuple(state[key].shape)}, expected {dims} dimensions")
    return tuple(state[key].shape)


def count(state: State, prefix: str) -> int:
    """How many numbers follow the prefix. They are counted, not trusted: `layers.999999` must not build a million."""
    return max(1, len({found[1] for k in state if (found := re.match(re.escape(prefix) + r"\.(\d+)\.", k))}))


@torch.no_grad()
def fill(model: nn.Module, state: State, sources: Callable[[str], list[str]], what: str) -> nn.Module:
    """Give each parameter the rows of its official sources; raise for the first key that is missing, odd or left."""
    model.to_empty(device=next(iter(state.values())).device)
    left = dict(state)
    for key, own in model.named_parameters():
        names = sources(key)
        for name, rows in zip(names, own.chunk(len(names))):
            given = shape(state, name, own.dim(), what)
            if given != tuple(rows.shape):
                raise CheckpointError(f"{what}: {name!r} is {given}, expected {tuple(rows.shape)} by the other shapes")
            rows.copy_(left.pop(name))
    if left:
        raise CheckpointError(f"{what}: holds {min(left)!r}, which has no place in it: is it another model?")
    return model.eval()


def rename(key: str, names: dict[str, str]) -> str:
    for ours, official in names.items():
        key = key.replace(ours, official)
    return key
