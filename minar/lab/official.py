"""Official weights for `minar sample`: a pair of files, and what the files do not say."""

from pathlib import Path

from torch import nn

from minar.ports import llamagen, var
from minar.ports.official import shape, unwrap

KINDS = ("llamagen", "var")
SIDES = {  # VAR's pyramids by their number of tokens: 256 and 512 pixels
    680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}


def models(
    kind: str, tokenizer: str | Path, weights: str | Path, n_heads: int | None = None, side: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Tokenizer and model from two official files of LlamaGen or VAR, in eval mode on the CPU.

    n_heads: by default one for each 64 channels, which holds for all released weights but LlamaGen-3B (32). side:
    LlamaGen's tokens a side, which its file does not hold: 16 for 256 pixels (the default), 24 for 384. Raises
    CheckpointError for a file that is missing, broken or of another model.
    """
    held = var.read(weights)
    if kind == "llamagen":
        width = shape(unwrap(held), "tok_embeddings.weight", 2, "LlamaGen GPT")[1]
        heads = n_heads or (32 if width == 3200 else max(1, width // 64))
        side = side or 16
        return llamagen.load_vqvae(llamagen.read(tokenizer)), llamagen.load_gpt(held, heads, (side, side))
    n_tokens = shape(unwrap(held), "pos_1LC", 3, "VAR")[1]
    if n_tokens not in SIDES:
        known = ", ".join(f"{n} (sides {sides})" for n, sides in SIDES.items())
        raise ValueError(f"VAR: the weights are for {n_tokens} tokens, known are {known}: use minar.ports.var yourself")
    vae = var.load_vae(var.read(tokenizer), SIDES[n_tokens])
    width = shape(unwrap(held), "class_emb.weight", 2, "VAR")[1]
    return vae, var.load_transformer(held, vae, n_heads or max(1, width // 64))
