"""Products in float32 precision on tensor cores: three in TF32, of parts of the numbers, instead of one without.

TF32 keeps 10 of the 23 bits behind the point. So each number is split into what TF32 holds and a remainder, and
a b = high high + high low + low high; what is left out is a 2^-22 of the product. Ootomo and Yokota, "Recovering single
precision accuracy from Tensor Cores", 2022.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

WIDE = 32  # channels from which on a product on CUDA is bound by arithmetic


@contextmanager
def on_tensor_cores(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inside, the product a' b'^T of what is yielded is a b^T in float32 precision, on tensor cores if that is sooner.

    a: (n, C), b: (m, C). Yields (n, 3C) and (m, 3C) for wide float32 on CUDA; elsewhere a and b themselves.
    """
    if not (a.is_cuda and a.dtype == b.dtype == torch.float32 and a.shape[-1] >= WIDE):
        yield a, b
        return
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield three_parts(a, b)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def three_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(n, C) and (m, C) float32 -> (n, 3C) and (m, 3C), whose product a' b'^T in TF32 is a b^T in float32."""
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    return torch.cat([a_high, a_high, a_low], -1), torch.cat([b_high, b_low, b_high], -1)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x = the nearest number with 10 bits behind the point + a remainder, exactly. float32."""
    high = ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
    return high, x - high
