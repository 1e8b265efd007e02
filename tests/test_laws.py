"""The laws hold for the models of the package, in several shapes."""

import pytest
import torch

from minar import (
    FSQ,
    GPT,
    VQVAE,
    CategoricalHead,
    CosineQuantizer,
    Decoder,
    Encoder,
    KVCache,
    Transformer,
    VectorQuantizer,
    laws,
)
from minar.sampling import race, top_k, top_p


def gpt(grid=(4, 4), vocab=24, width=48, n_heads=4):
    return laws.wake(GPT(Transformer(width, 2, n_heads), vocab, 5, grid))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 16)])
def test_gpt(grid):
    model, generator = gpt(grid), torch.Generator().manual_seed(1)
    tokens = torch.randint(24, (2, grid[0] * grid[1]), generator=generator)
    label = torch.tensor([0, 3])
    laws.check_causal(model.logits, tokens[:, :-1], label, model.vocab)
    laws.check_generate(model.generate, label)
    laws.check_guidance(model.logits, model.cond.null, tokens[:, :-1], label)
    laws.check_all_trained(model, tokens, label)


def test_logits_with_a_cache_are_the_same_rows():
    model, label = gpt(), torch.tensor([1, 4])
    tokens = torch.randint(24, (2, 15), generator=torch.Generator().manual_seed(1))
    whole = model.logits(tokens, label)
    cache = KVCache(16)
    parts = [model.logits(tokens[:, :end], label, cache) for end in (0, 1, 6, 15)]  # prefill, decode, chunks
    laws.check_equal(lambda: whole, lambda: torch.cat(parts, 1))
    cache.n -= 5  # forget, and compute again
    laws.check_equal(lambda: whole[:, -5:], lambda: model.logits(tokens, label, cache))


def test_transformer_keep_forgets_the_rest():
    trunk = laws.wake(Transformer(32, 2, 2))
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    cache = KVCache(8)
    trunk(x, "causal", cache=cache, keep=3)
    assert cache.n == 3
    laws.check_equal(lambda: trunk(x, "causal")[:, 3:], lambda: trunk(x[:, 3:], "causal", cache=cache))


def test_cache():
    laws.check_kv(KVCache)


@pytest.mark.parametrize("quantizer", [VectorQuantizer(32, 6), CosineQuantizer(32, 6), FSQ((4, 5, 8))])
@pytest.mark.parametrize("size", [(4, 4), (2, 6)])
def test_quantizers(quantizer, size):
    z = torch.randn(3, quantizer.channels, *size, generator=torch.Generator().manual_seed(0))
    if not isinstance(quantizer, FSQ):
        quantizer.start_from(torch.randn(8, quantizer.channels, 4, 4), torch.Generator().manual_seed(1))
    laws.check_quantizer(quantizer, z)


@pytest.mark.parametrize("levels", [(2, 3), (4, 5, 8), (8, 8, 16), (7,)])
def test_fsq_reaches_every_code_and_only_those(levels):
    fsq = FSQ(levels)
    every = torch.arange(fsq.vocab)[None]
    assert torch.equal(fsq.index((fsq.lookup(every) + 1) * (fsq.size // 2)), every)
    wild = torch.randn(4, len(levels), 32, 32, generator=torch.Generator().manual_seed(0)) * 5
    tokens = fsq.encode(wild)
    assert tokens.min() == 0 and tokens.max() == fsq.vocab - 1


def test_head():
    laws.check_head(CategoricalHead(16, 12), 16, 12)


def test_samplers_follow_their_tables():
    logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -3.0])
    for keep in (lambda x: x, lambda x: top_k(x, 3), lambda x: top_p(x, 0.8)):
        p = keep(logits).softmax(-1)

        def draw(n, p=p):
            return race(p.expand(n, -1), torch.Generator().manual_seed(0))

        laws.check_sampler(draw, p)


def test_top_k_keeps_ties_and_top_p_the_first():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0])
    assert torch.isfinite(top_k(logits, 2)).tolist() == [False, True, True, True]
    assert torch.isfinite(top_p(logits, 1e-9)).tolist() == [False, True, False, False]
    assert torch.isfinite(top_p(logits, 0.999)).all()


@pytest.mark.parametrize("quantizer", [VectorQuantizer(32, 6), CosineQuantizer(32, 6), FSQ((4, 4, 4))])
def test_vqvae(quantizer):
    model = VQVAE(Encoder(3, quantizer.channels, 16), Decoder(3, quantizer.channels, 16), quantizer)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    laws.check_all_trained(model, images)
    tokens = model.encode(images)
    assert tokens.shape == (2, 24) and tokens.dtype == torch.long
    laws.check_equal(model.reconstruct, lambda x: model.decode(model.encode(x), (4, 6)), images)
