"""minar: autoregressive image generation, built in front of you.

Dimension key, used in every file:
    B batch    N slots (tokens of an image)    T new slots in this call    D width    H heads    hd head dim
    V codes    C channels of image or latent   h w grid of tokens          f pixels per token side

Reading order: transformer, cache, sampling, heads, condition, gpt, quantizers, vqvae; then laws, and lab/ for
everything a lab needs around the models (train, checkpoint, data, metrics, plots, profile).
"""

from minar.cache import KVCache
from minar.condition import ClassLabel
from minar.gpt import GPT
from minar.heads import CategoricalHead
from minar.quantizers import FSQ, CosineQuantizer, Quantized, VectorQuantizer
from minar.transformer import Transformer
from minar.vqvae import VQVAE, Decoder, Encoder

__version__ = "0.1.0"

__all__ = [
    "FSQ",
    "GPT",
    "VQVAE",
    "CategoricalHead",
    "ClassLabel",
    "CosineQuantizer",
    "Decoder",
    "Encoder",
    "KVCache",
    "Quantized",
    "Transformer",
    "VectorQuantizer",
]
