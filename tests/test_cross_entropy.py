"""Cross-entropy in blocks: the loss and the gradients of the plain one."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from minar import CategoricalHead, laws
from minar.cross_entropy import _InBlocks as cross
from minar.cross_entropy import cross_entropy

module = importlib.import_module("minar.cross_entropy")


def both(n, vocab, block, dtype=torch.float32, autocast=False):
    """Loss, and gradients of h and weight, in blocks and plain."""
    generator = torch.Generator().manual_seed(n)
    h, weight = (torch.randn(k, 12, generator=generator).to(dtype) for k in (n, vocab))
    target, scale = torch.randint(vocab, (n,), generator=generator), torch.rand(n, generator=generator)
    found = []
    for rows in (block, 2**30):
        a, w = h.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = cross_entropy(a, w, target, rows)
        (loss * scale).sum().backward()
        found.append((loss.detach(), a.grad, w.grad))
    return found


@given(n=st.integers(1, 40), vocab=st.integers(2, 30), block=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_blocks_change_nothing(n, vocab, block):
    for mine, plain in zip(*both(n, vocab, block), strict=True):
        assert mine.dtype == plain.dtype and torch.allclose(mine, plain, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_in_half_precision(dtype, autocast):
    for mine, plain in zip(*both(33, 20, 100, dtype, autocast), strict=True):
        assert mine.dtype == plain.dtype
        assert torch.allclose(mine.float(), plain.float(), atol=3e-2, rtol=3e-2)


def test_the_head_uses_it(monkeypatch):
    rows, right = [], cross.apply
    monkeypatch.setattr(module, "BLOCK", 1)
    monkeypatch.setattr(cross, "apply", lambda *args: (rows.append(len(args[0])), right(*args))[1])
    laws.check_head(CategoricalHead(16, 12), 16, 12)
    assert rows


def test_it_is_the_cross_entropy():
    h, weight, target = torch.randn(5, 4), torch.randn(7, 4), torch.randint(7, (5,))
    assert torch.allclose(cross_entropy(h, weight, target, 3), F.cross_entropy(h @ weight.T, target, reduction="none"))
