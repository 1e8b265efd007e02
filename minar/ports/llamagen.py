"""Official LlamaGen weights: the GPT becomes minar.GPT, the tokenizer a minar.VQVAE around the network of llamagen_vq.

    gpt = load_gpt(read("c2i_B_256.pt"), n_heads=12, grid=(16, 16))
    vqvae = load_vqvae(read("vq_ds16_c2i.pt"))

Both can be written with minar.lab.checkpoint.save. To load a tokenizer again, `import minar.ports.llamagen` first:
checkpoint.load knows only classes that have been imported. A GPT needs no such import.

Source: FoundationVision/LlamaGen, autoregressive/models/gpt.py and tokenizer/tokenizer_image/vq_model.py.
Sun et al., "Autoregressive Model Beats Diffusion: LlamaGen", 2024.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from minar import GPT, VQVAE, CosineQuantizer, Transformer
from minar.lab.checkpoint import CheckpointError
from minar.ports.llamagen_vq import LlamaGenDecoder, LlamaGenEncoder

State = dict[str, Tensor]

GPT_NAMES = {
    "trunk.blocks.": "layers.",
    "trunk.norm": "norm",
    ".norm1": ".attention_norm",
    ".norm2": ".ffn_norm",
    ".attn.qkv": ".attention.wqkv",
    ".attn.out": ".attention.wo",
    ".mlp.": ".feed_forward.",
    ".down.": ".w2.",
    "embed.": "tok_embeddings.",
    "cond.table": "cls_embedding.embedding_table",
    "head.": "output.",
}
VQ_NAMES = {
    "encoder.quant_conv": "quant_conv",
    "decoder.post_quant_conv": "post_quant_conv",
    "quantizer.codebook": "quantize.embedding.weight",
}


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


def load_gpt(state_dict: dict, n_heads: int, grid: tuple[int, int]) -> GPT:
    """A class-conditional LlamaGen GPT from its official weights, in eval mode, on their device, in float32.

    All sizes are read off the shapes but two, which the file does not tell:
    n_heads: 12 for B, 16 for L, 20 for XL, 24 for XXL, 32 for 3B.
    grid: (16, 16) for 256-pixel weights, (24, 24) for 384. The wrong one loads, and paints garbage.

    The last row of the class table is taken as the null class. Raises CheckpointError, naming the official key, for
    anything missing, unknown or misshaped (only `freqs_cis`, a table, may be there or not), and for text-to-image;
    ValueError if the width does not split into n_heads.
    """
    what = "LlamaGen GPT"
    state = {k: v for k, v in unwrap(state_dict).items() if k != "freqs_cis"}
    for key in state:
        if key.startswith(("cls_embedding.cap_proj.", "cls_embedding.uncond_embedding")):
            raise CheckpointError(f"{what}: holds {key!r}: text-to-image is not supported yet")
    vocab, width = _shape(state, "tok_embeddings.weight", 2, what)
    n_rows, _ = _shape(state, "cls_embedding.embedding_table.weight", 2, what)
    hidden, _ = _shape(state, "layers.0.feed_forward.w1.weight", 2, what)
    with torch.device("meta"):  # no random start, since all of it is overwritten
        trunk = Transformer(width, _count(state, "layers"), n_heads, hidden)
        gpt = GPT(trunk, vocab, n_rows - 1, grid)
    return _fill(gpt, state, _gpt_sources, what)


def _gpt_sources(key: str) -> list[str]:
    """The official tensors that, one below the other, make ours."""
    parts = ("w1", "w3") if ".gate_up." in key else ("gate_up",)
    return [_rename(key.replace("gate_up", part), GPT_NAMES) for part in parts]


def load_vqvae(state_dict: dict) -> VQVAE:
    """LlamaGen's tokenizer (VQ-8 or VQ-16) from its official weights, in eval mode, on their device, in float32.

    Raises CheckpointError, naming the official key, for anything missing, unknown or misshaped; only
    `quantize.codebook_used`, a statistic, may be there or not. The quantizer counts as started, so `fit` leaves its
    codes where they are.
    """
    what = "LlamaGen tokenizer"
    state = {k: v for k, v in unwrap(state_dict).items() if k != "quantize.codebook_used"}
    vocab, z_channels = _shape(state, "quantize.embedding.weight", 2, what)
    width, in_channels = _shape(state, "encoder.conv_in.weight", 4, what)[:2]
    if width % 32 or not width:
        raise CheckpointError(f"{what}: 'encoder.conv_in.weight' gives {width} channels, expected a multiple of 32")
    latent_channels = _shape(state, "quant_conv.weight", 4, what)[1]
    out_channels = _shape(state, "decoder.conv_out.weight", 4, what)[0]
    mults, n_blocks = _levels(state, "encoder", width, what)
    mults_up, n_blocks_up = _levels(state, "decoder", width, what)
    with torch.device("meta"):
        encoder = LlamaGenEncoder(in_channels, z_channels, latent_channels, width, mults, n_blocks)
        decoder = LlamaGenDecoder(out_channels, z_channels, latent_channels, width, mults_up[::-1], n_blocks_up - 1)
        vqvae = VQVAE(encoder, decoder, CosineQuantizer(vocab, z_channels))
    _fill(vqvae, state, _vq_sources, what)
    vqvae.quantizer.hits.zero_()
    vqvae.quantizer.started.fill_(True)
    return vqvae


def _vq_sources(key: str) -> list[str]:
    return [_rename(key, VQ_NAMES)]


def _rename(key: str, names: dict[str, str]) -> str:
    for ours, official in names.items():
        key = key.replace(ours, official)
    return key


def _levels(state: State, side: str, width: int, what: str) -> tuple[tuple[int, ...], int]:
    """The multipliers of the encoder's or the decoder's levels, in the order of the keys, and blocks per level."""
    keys = [f"{side}.conv_blocks.{i}.res.0.conv1.weight" for i in range(_count(state, f"{side}.conv_blocks"))]
    mults = tuple(max(1, _shape(state, key, 4, what)[0] // width) for key in keys)
    return mults, _count(state, f"{side}.conv_blocks.0.res")


def _shape(state: State, key: str, dims: int, what: str) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{what}: misses {key!r}: is it another model?")
    if state[key].dim() != dims:
        raise CheckpointError(f"{what}: {key!r} is {tuple(state[key].shape)}, expected {dims} dimensions")
    return tuple(state[key].shape)


def _count(state: State, prefix: str) -> int:
    """How many numbers follow the prefix. They are counted, not trusted: `layers.999999` must not build a million."""
    return max(1, len({found[1] for k in state if (found := re.match(re.escape(prefix) + r"\.(\d+)\.", k))}))


@torch.no_grad()
def _fill(model: nn.Module, state: State, sources: Callable[[str], list[str]], what: str) -> nn.Module:
    """Give each parameter the rows of its official sources; raise for the first key that is missing, odd or left."""
    model.to_empty(device=next(iter(state.values())).device)
    left = dict(state)
    for key, own in model.named_parameters():
        names = sources(key)
        for name, rows in zip(names, own.chunk(len(names))):
            given = _shape(state, name, own.dim(), what)
            if given != tuple(rows.shape):
                raise CheckpointError(f"{what}: {name!r} is {given}, expected {tuple(rows.shape)} by the other shapes")
            rows.copy_(left.pop(name))
    if left:
        raise CheckpointError(f"{what}: holds {min(left)!r}, which has no place in it: is it another model?")
    return model.eval()
