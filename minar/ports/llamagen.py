"""Official LlamaGen weights: the GPT becomes minar.GPT, the tokenizer a minar.VQVAE around the network of llamagen_vq.

    gpt = load_gpt(read("c2i_B_256.pt"), n_heads=12, grid=(16, 16))
    vqvae = load_vqvae(read("vq_ds16_c2i.pt"))

Both can be written with minar.lab.checkpoint.save and are then like any other checkpoint.

Source: FoundationVision/LlamaGen, autoregressive/models/gpt.py and tokenizer/tokenizer_image/vq_model.py.
Sun et al., "Autoregressive Model Beats Diffusion: LlamaGen", 2024.
"""

import torch

from minar import GPT, VQVAE, CosineQuantizer, Transformer
from minar.lab.checkpoint import CheckpointError
from minar.ports.llamagen_vq import LlamaGenDecoder, LlamaGenEncoder
from minar.ports.official import State, count, fill, read, rename, shape, unwrap

__all__ = ["load_gpt", "load_vqvae", "read", "unwrap"]

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
    vocab, width = shape(state, "tok_embeddings.weight", 2, what)
    n_rows, _ = shape(state, "cls_embedding.embedding_table.weight", 2, what)
    hidden, _ = shape(state, "layers.0.feed_forward.w1.weight", 2, what)
    with torch.device("meta"):  # no random start, since all of it is overwritten
        trunk = Transformer(width, count(state, "layers"), n_heads, hidden)
        gpt = GPT(trunk, vocab, n_rows - 1, grid)
    return fill(gpt, state, _gpt_sources, what)


def _gpt_sources(key: str) -> list[str]:
    """The official tensors that, one below the other, make ours."""
    parts = ("w1", "w3") if ".gate_up." in key else ("gate_up",)
    return [rename(key.replace("gate_up", part), GPT_NAMES) for part in parts]


def load_vqvae(state_dict: dict) -> VQVAE:
    """LlamaGen's tokenizer (VQ-8 or VQ-16) from its official weights, in eval mode, on their device, in float32.

    Raises CheckpointError, naming the official key, for anything missing, unknown or misshaped; only
    `quantize.codebook_used`, a statistic, may be there or not. The quantizer counts as started, so `fit` leaves its
    codes where they are.
    """
    what = "LlamaGen tokenizer"
    state = {k: v for k, v in unwrap(state_dict).items() if k != "quantize.codebook_used"}
    vocab, z_channels = shape(state, "quantize.embedding.weight", 2, what)
    width, in_channels = shape(state, "encoder.conv_in.weight", 4, what)[:2]
    if width % 32 or not width:
        raise CheckpointError(f"{what}: 'encoder.conv_in.weight' gives {width} channels, expected a multiple of 32")
    latent_channels = shape(state, "quant_conv.weight", 4, what)[1]
    out_channels = shape(state, "decoder.conv_out.weight", 4, what)[0]
    mults, n_blocks = _levels(state, "encoder", width, what)
    mults_up, n_blocks_up = _levels(state, "decoder", width, what)
    with torch.device("meta"):
        encoder = LlamaGenEncoder(in_channels, z_channels, latent_channels, width, mults, n_blocks)
        decoder = LlamaGenDecoder(out_channels, z_channels, latent_channels, width, mults_up[::-1], n_blocks_up - 1)
        vqvae = VQVAE(encoder, decoder, CosineQuantizer(vocab, z_channels))
    fill(vqvae, state, _vq_sources, what)
    vqvae.quantizer.hits.zero_()
    vqvae.quantizer.started.fill_(True)
    return vqvae


def _vq_sources(key: str) -> list[str]:
    return [rename(key, VQ_NAMES)]


def _levels(state: State, side: str, width: int, what: str) -> tuple[tuple[int, ...], int]:
    """The multipliers of the encoder's or the decoder's levels, in the order of the keys, and blocks per level."""
    keys = [f"{side}.conv_blocks.{i}.res.0.conv1.weight" for i in range(count(state, f"{side}.conv_blocks"))]
    mults = tuple(max(1, shape(state, key, 4, what)[0] // width) for key in keys)
    return mults, count(state, f"{side}.conv_blocks.0.res")
