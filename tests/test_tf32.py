"""float32 products of three in TF32."""

import pytest
import torch

from minar.quantizers import nearest
from minar.tf32 import on_tensor_cores, split, three_parts

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 is a format of NVIDIA's tensor cores")


def in_tf32(a, b):
    """What tensor cores do: they read 10 bits behind the point, and add up in float32."""
    return split(a)[0] @ split(b)[0].T


def gap(product, exact):
    return ((product - exact).norm() / exact.norm()).item()


def test_three_products_are_as_good_as_one_in_float32():
    a, b = torch.randn(64, 256), torch.randn(48, 256)
    exact = a.double() @ b.double().T
    assert gap(in_tf32(a, b), exact) > 1e-4
    assert gap(in_tf32(*three_parts(a, b)), exact) < 2 * gap(a @ b.T, exact) + 2e-7


def test_a_number_is_the_sum_of_its_parts():
    x = torch.randn(1000) * 10 ** torch.randint(-5, 5, (1000,))
    high, low = split(x)
    assert torch.equal(high + low, x) and (low.abs() <= high.abs() * 2**-11).all()
    assert torch.equal(high.view(torch.int32) & 0x1FFF, torch.zeros(1000, dtype=torch.int32))


@gpu
def test_the_nearest_codes_are_those_of_float64_and_the_setting_stays():
    rows, codes = torch.randn(2048, 256, device="cuda"), torch.randn(4096, 256, device="cuda")
    before = torch.backends.cuda.matmul.fp32_precision
    assert torch.equal(nearest(rows, codes), nearest(rows.double(), codes.double()))
    assert torch.backends.cuda.matmul.fp32_precision == before
    with on_tensor_cores(rows, codes) as (a, b):
        assert gap(a @ b.T, rows.double() @ codes.double().T) < 1e-5  # the cores add up a little less well
