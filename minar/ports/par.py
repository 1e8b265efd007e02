"""Official PAR weights become minar.papers.par.PAR: LlamaGen's GPT and a table of transition tokens.

    model = load(read("PAR-XL-4x.pt"), n_heads=20, grid=(24, 24), per_side=2)
    tokens = generate(model, label, region_groups(24, 24, 2), cfg=1.5)

Source: Epiphqny/PAR, autoregressive/models/gpt.py. Wang et al., "Parallelized Autoregressive Visual Generation", 2024.
"""

import torch

from minar.lab.checkpoint import CheckpointError
from minar.papers.par import PAR
from minar.ports.llamagen import load_gpt
from minar.ports.official import read, shape, unwrap

__all__ = ["load", "read"]

TRANSITION = "spe_tok_embeddings.special_embeddings.weight"


@torch.no_grad()
def load(state_dict: dict, n_heads: int, grid: tuple[int, int], per_side: int) -> PAR:
    """PAR from its official weights, in eval mode, on their device, in float32. It has no `target`: ours stays zero.

    n_heads: 20 for XL, 24 for XXL, 32 for 3B. grid: (24, 24) for 384-pixel weights. per_side: 2 for 4x, 4 for 16x.
    Raises CheckpointError as load_gpt does, or if there are not per_side^2 - 1 transition tokens of the GPT's width.
    """
    state = unwrap(state_dict)
    given = shape(state, TRANSITION, 2, "PAR")
    gpt = load_gpt({k: v for k, v in state.items() if k != TRANSITION}, n_heads, grid)
    needed = (per_side**2 - 1, gpt.trunk.width)
    if given != needed:
        raise CheckpointError(f"PAR: {TRANSITION!r} is {given}, expected {needed} for {per_side}x{per_side} regions")
    model = PAR(gpt.trunk, gpt.embed, gpt.cond, gpt.head, grid, per_side).to(state[TRANSITION].device)
    model.transition.weight.copy_(state[TRANSITION])
    return model.eval()
