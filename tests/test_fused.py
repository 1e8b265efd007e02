"""The fused kernels give what the plain modules give. Without a GPU they run in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="the fused kernels need Triton")

from families import FAMILIES, batch, model

from minar import CategoricalHead, KVCache, Transformer, fast, fused, generate, laws
from minar.plan import random_order, raster, region_groups
from minar.transformer import rope_2d

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # conftest.py asks for the interpreter
STEPS = (1, 2, 1, 5, 17)  # slots of each call


def trunk(width, heads, dtype=torch.float32):
    return laws.wake(Transformer(width, 2, heads, hidden=24)).to(DEVICE, dtype)


def close(a, b, dtype):
    return torch.allclose(a, b, atol=1e-5 if dtype == torch.float32 else 5e-2, rtol=1e-5)


@torch.no_grad()
def compare(m, rows, dtype=torch.float32, per_row=False, run=fused.run, steps=STEPS):
    plain, mine = KVCache(sum(steps)), KVCache(sum(steps))
    for T in steps:
        x = torch.randn(rows, T, m.width, device=DEVICE, dtype=dtype)
        place = torch.arange(plain.n - 1, plain.n - 1 + T, device=DEVICE)  # the first stands nowhere
        if per_row:
            place = (place + torch.arange(rows, device=DEVICE)[:, None]).clamp_min(-1)
        given = x.clone()
        rope = rope_2d(place, 6, m.width // m.n_heads)
        wanted, got = m(x, None, rope, plain), run(m, x, None, rope, mine)
        assert torch.equal(x, given), "the input was changed"
        assert mine.n == plain.n
        assert close(got, wanted, dtype), (
            f"step of {T} slots after {plain.n - T}: {(got - wanted).abs().max():.2g} apart"
        )
        for layer in plain.layers:
            for a, b in zip(plain.layers[layer], mine.layers[layer], strict=True):
                assert close(a[:, :, : plain.n], b[:, :, : plain.n], dtype), f"layer {layer} caches something else"


@pytest.mark.parametrize("width, heads, rows", [(32, 2, 1), (48, 4, 2), (8, 1, 35)])
def test_steps_are_those_of_the_trunk(width, heads, rows):
    compare(trunk(width, heads), rows)


def test_each_row_may_stand_elsewhere():
    compare(trunk(32, 2), 3, per_row=True)


@pytest.mark.skipif(
    DEVICE == "cpu", reason="Triton's interpreter multiplies the bits of bfloat16 as if they were integers"
)
def test_in_half_precision():
    compare(trunk(32, 2, torch.bfloat16), 3, torch.bfloat16)


def test_weights_too_long_for_shared_memory(monkeypatch):
    monkeypatch.setattr(fused, "SHARED", 100)
    compare(trunk(32, 2), 4)


def test_more_rows_than_the_card_has_places_for(monkeypatch):
    monkeypatch.setattr(fused, "MANY", 3)
    compare(trunk(32, 2), 2)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_long_cache_is_shared_by_many_programs(rows, monkeypatch):
    monkeypatch.setattr(fused, "ALONE", 2)
    monkeypatch.setattr(fused, "PART", 4)
    calls, parts = [], fused._attend_in_parts
    monkeypatch.setattr(fused, "_attend_in_parts", lambda *given: (calls.append(1), parts(*given)))
    compare(trunk(32, 2), rows, steps=(*STEPS, 1, 1))
    assert len(calls) == 3 * 2, "three steps of one slot, two layers"


@torch.no_grad()
def test_what_is_no_single_step():
    m, x = trunk(32, 2), torch.randn(2, 5, 32, device=DEVICE)
    mask, rope = (
        torch.ones(5, 5, dtype=torch.bool, device=DEVICE).tril(),
        rope_2d(torch.arange(5, device=DEVICE), 3, 16),
    )
    for given in ("causal", mask):
        assert close(fused.run(m, x, given, rope, KVCache(5)), m(x, given, rope, KVCache(5)), x.dtype)
    assert close(fused.run(m, x, None, rope), m(x, None, rope), x.dtype)
    assert close(fused.run(m, x), m(x), x.dtype)
    half = KVCache(5)
    fused.run(m, x, None, rope, half, keep=2)
    assert half.n == 2


@torch.no_grad()
@pytest.mark.parametrize("rows, slots", [(1, 1), (3, 4), (20, 1)])
@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.7}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 0}], ids=str)
def test_tokens_are_drawn_as_the_head_draws_them(rows, slots, knobs):
    head = laws.wake(CategoricalHead(32, 50)).to(DEVICE)
    h, h_null = torch.randn(2, rows, slots, 32, device=DEVICE)
    for null, cfg in ((None, 1.0), (h_null, 0.0), (h_null, 2.5)):
        a, b = (torch.Generator(DEVICE).manual_seed(5) for _ in range(2))
        for _ in range(3):
            assert torch.equal(
                fused.sample(head, h, null, cfg, generator=a, **knobs),
                head.sample(h, null, cfg, generator=b, **knobs),
            )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_images_are_those_of_plain_decoding(family):
    m, (_, cond) = model(FAMILIES[family]).to(DEVICE), batch(rows=3)
    each = random_order(4, 4, 3, torch.Generator().manual_seed(0))
    for plan, cfg in ((raster(4, 4), 1.0), (region_groups(4, 4, 2), 2.0), (each, 1.0)):
        wanted = generate(m, cond, plan, cfg, temperature=0)
        with fast._fewer_kernels(m):
            assert torch.equal(generate(m, cond, plan, cfg, temperature=0), wanted)
    assert "forward" not in vars(m.trunk) and "sample" not in vars(m.head) and "rope" not in vars(m)


def without_norm(x, norm, weight):
    return torch.nn.functional.linear(x, weight)


def one_slot_late(qkv, rope, cache, layer, n_heads, right=fused.attend):
    cache.n += 1
    try:
        return right(qkv, rope, cache, layer, n_heads)
    finally:
        cache.n -= 1


def no_turn(qkv, rope, cache, layer, n_heads, right=fused.attend):
    still = torch.stack([torch.ones_like(rope[..., 0]), torch.zeros_like(rope[..., 0])], -1)
    return right(qkv, still, cache, layer, n_heads)


def no_residual(out, x, weight):
    out.copy_(torch.nn.functional.linear(x, weight))


def gate_and_up_swapped(x, norm, weight, right=fused.gated_product):
    return right(x, norm, weight.roll(len(weight) // 2, 0))


BUGS = {
    "normed_product": without_norm,
    "attend": one_slot_late,
    "attend ": no_turn,
    "add_product": no_residual,
    "gated_product": gate_and_up_swapped,
}


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_seen(name, monkeypatch):
    monkeypatch.setattr(fused, name.strip(), BUGS[name])
    with pytest.raises((AssertionError, ValueError)):
        compare(trunk(32, 2), 2)
