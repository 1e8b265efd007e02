"""What others bring, if installed (extra `bench`): Hugging Face's decoder, lucidrains' vector-quantize-pytorch."""

from collections.abc import Callable

import torch
from torch import Tensor

from minar import NextStepAR


def hugging_face(model: NextStepAR, batch: int) -> dict[str, Callable[[], Tensor]]:
    """generate of a Llama of the model's shape, with its two caches: 2 rows a picture, whose logits are not mixed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    trunk, vocab, n, weight = model.trunk, model.head.vocab, model.n_tokens, model.head.weight
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=trunk.width,
        intermediate_size=trunk.hidden,
        num_hidden_layers=trunk.n_layers,
        num_attention_heads=trunk.n_heads,
        max_position_embeddings=n + 1,
        bos_token_id=None,
        eos_token_id=None,
    )
    llama = LlamaForCausalLM(config).to(weight.device, weight.dtype).eval()
    start = torch.ones(2 * batch, 1, dtype=torch.long, device=weight.device)
    asked = {"attention_mask": torch.ones_like(start), "max_new_tokens": n, "do_sample": True, "top_k": 0}
    kinds = {"HF dynamic": "dynamic", "HF static": "static"}
    return {
        name: lambda kind=kind: llama.generate(start, **asked, cache_implementation=kind, pad_token_id=0)
        for name, kind in kinds.items()
    }


def vector_quantize(channels: int, codebook: Tensor, z: Tensor) -> dict[str, Callable]:
    """Look-up and training step of lucidrains' quantizer on (B, C, n, 1) encodings."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=channels, codebook_size=len(codebook)).to(z.device)
    quantizer._codebook.embed.data.copy_(codebook[None])
    rows = z.detach().flatten(2).transpose(1, 2).contiguous().requires_grad_()

    def look_up() -> None:
        quantizer.eval()
        with torch.no_grad():
            quantizer(rows)

    def training_step() -> None:
        quantizer.train()
        quantized, _, loss = quantizer(rows)
        (quantized.mean() + loss.sum()).backward()

    return {"look-up": look_up, "training step": training_step}
