"""minar: autoregressive image generation, built in front of you.

Dimension key, used in every file:
    B batch    N slots (tokens of an image)    T new slots in this call    D width    H heads    hd head dim
    V codes    C channels of image or latent   h w grid of tokens          f pixels per token side

Reading order: transformer, cache, sampling, heads, condition, gpt, quantizers, vqvae. Then, from lesson 07 on: plan,
model, next_step, any_order, masked, generate, fast; multi_scale, next_scale. laws and model_laws say what must hold;
papers/ are small deltas on this core, ports/ take official weights, lab/ is everything around the models (train,
checkpoint, data, metrics, plots).
"""

from minar.any_order import AnyOrderAR
from minar.cache import KVCache
from minar.condition import ClassLabel, TextPrefix
from minar.generate import generate
from minar.gpt import GPT
from minar.heads import CategoricalHead
from minar.masked import MaskedAR
from minar.model import ARModel
from minar.multi_scale import MultiScaleQuantizer
from minar.next_scale import NextScaleAR
from minar.next_step import NextStepAR
from minar.plan import Plan
from minar.quantizers import FSQ, CosineQuantizer, Quantized, VectorQuantizer
from minar.transformer import Transformer
from minar.vqvae import VQVAE, Decoder, Encoder

__version__ = "0.1.0"

__all__ = [
    "FSQ",
    "GPT",
    "VQVAE",
    "ARModel",
    "AnyOrderAR",
    "CategoricalHead",
    "ClassLabel",
    "CosineQuantizer",
    "Decoder",
    "Encoder",
    "KVCache",
    "MaskedAR",
    "MultiScaleQuantizer",
    "NextScaleAR",
    "NextStepAR",
    "Plan",
    "Quantized",
    "TextPrefix",
    "Transformer",
    "VectorQuantizer",
    "generate",
]
