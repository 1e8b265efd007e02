"""Metrics: each against a number worked out by hand, and the judge against pictures that anybody can judge."""

import math

import pytest
import torch

from minar import GPT, Transformer
from minar.lab import data, judge, metrics
from minar.laws import wake


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_by_hand():
    black = -torch.ones(2, 1, 4, 4)
    assert metrics.psnr(black, -black) == pytest.approx(0)  # as wrong as can be: the peak is 2
    assert metrics.psnr(black, black + 0.2) == pytest.approx(20, abs=1e-4)
    mixed = black.clone()
    mixed[0] += 0.2
    mixed[1] += 0.02
    assert metrics.psnr(black, mixed) == pytest.approx(30, abs=1e-3)  # mean of 20 and 40 dB, not dB of the mean
    assert 90 < metrics.psnr(black, black) < math.inf


def test_use_of_the_codebook():
    one, all_alike, half = torch.tensor([0, 9, 0, 0]), torch.full((8,), 3), torch.tensor([5, 5, 0, 0])
    assert metrics.usage(one) == 0.25 and metrics.perplexity(one) == pytest.approx(1)
    assert metrics.usage(all_alike) == 1 and metrics.perplexity(all_alike) == pytest.approx(8)
    assert metrics.usage(half) == 0.5 and metrics.perplexity(half) == pytest.approx(2)
    assert metrics.perplexity(torch.tensor([1, 3])) == pytest.approx(4 / 3**0.75)
    assert metrics.usage(0 * one) == 0 and metrics.perplexity(0 * one) == pytest.approx(1)


def shaped(x, mean, std):
    """Rows with exactly this mean and these independent standard deviations."""
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white * std + mean


def test_frechet_of_diagonal_gaussians():
    (mean_a, std_a), (mean_b, std_b) = (noise(2, 6, seed=s).double().abs() + 0.1 for s in (1, 2))
    a = shaped(noise(40, 6, seed=3).double(), mean_a, std_a)
    b = shaped(noise(70, 6, seed=4).double(), mean_b, std_b)
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    assert metrics.frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(b, a) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(a + 1, b + 1) == pytest.approx(expected, rel=1e-6)
    turn = torch.linalg.qr(noise(6, 6, seed=5).double()).Q
    assert metrics.frechet(a @ turn, b @ turn) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero():
    a = noise(50, 8)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet(a, a[torch.randperm(50)]) == pytest.approx(0, abs=1e-6)
    few = noise(3, 8)  # fewer rows than features: the covariance has no full rank
    assert metrics.frechet(few, few) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [(noise(1, 4), noise(9, 4)), (noise(9, 4), noise(9, 5))])
def test_frechet_says_what_it_needs(a, b):
    with pytest.raises(
        ValueError, match=r"needs two sets of 2 or more equally wide rows, got \(\d, 4\) and \(9, [45]\)"
    ):
        metrics.frechet(a, b)


def gpt():
    return GPT(Transformer(16, 1, 2, 24), vocab=32, n_classes=5, grid=(2, 3))


def test_an_untrained_gpt_needs_log2_v_bits():
    tokens, labels = torch.randint(32, (7, 6)), torch.randint(5, (7,))
    assert metrics.bits_per_token(gpt(), tokens, labels) == pytest.approx(5, abs=1e-5)


def test_bits_are_those_of_the_logits_whatever_the_batch():
    model = wake(gpt())
    generator = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(n, shape, generator=generator) for n, shape in ((32, (7, 6)), (5, (7,))))
    log_p = model.logits(tokens[:, :-1], labels).log_softmax(-1).gather(-1, tokens[..., None])
    expected = -float(log_p.detach().mean()) / math.log(2)
    assert expected != pytest.approx(5, abs=0.1)
    for batch in (2, 7, 256):
        assert metrics.bits_per_token(model, tokens, labels, batch) == pytest.approx(expected, rel=1e-5)


def test_bits_per_pixel():
    assert metrics.bits_per_pixel(5.0, n_tokens=64, pixels=28 * 28) == pytest.approx(320 / 784)


def test_distance_carries_its_name_and_floor():
    assert str(metrics.Distance(3.14159, 0.5, "distance")) == "distance: 3.14 (real against real: 0.50)"


# The judge, which ships with the package.


@pytest.fixture(scope="module")
def pictures():
    return data.fashion("test")


def test_judge_knows_fashion(pictures):
    assert judge.accuracy(pictures.images, pictures.labels) > 0.88
    assert judge.accuracy(pictures.images, pictures.labels.roll(1)) < 0.3
    features = judge.features(pictures.images[:7], batch=3)
    assert features.shape == (7, 64) and features.dtype == torch.float32 and not features.requires_grad
    assert torch.allclose(features, judge.features(pictures.images[:7]), atol=1e-4)


def test_judge_tells_clothes_from_noise(pictures):
    whole = judge.fashion_distance(pictures.images)
    assert whole.value == pytest.approx(whole.floor, rel=1e-3) and 0 < whole.floor < 0.5
    few = pictures.images[:200]
    floor = judge.fashion_distance(few).floor
    assert whole.floor < floor < 2  # it falls with n, so equal n are compared
    static = judge.fashion_distance(noise(200, 1, 32, 32).clamp(-1, 1))
    assert static.floor == floor and static.value > 20 * floor and static.name.endswith("n = 200")
    blurred = torch.nn.functional.avg_pool2d(few, 5, 1, 2)
    one_class = pictures.images[pictures.labels == 3].repeat(2, 1, 1, 1)
    for worse in (blurred, one_class, few.roll(8, 3)):
        assert 2 * floor < judge.fashion_distance(worse).value < static.value


def test_judge_says_what_it_reads(pictures):
    for wrong in (torch.zeros(2, 3, 32, 32), torch.zeros(1, 32, 32)):
        with pytest.raises(ValueError, match=r"the Fashion judge reads \(B, 1, 32, 32\), got \("):
            judge.features(wrong)
    with pytest.raises(ValueError, match="at most 1000 pictures can be judged beside an equal floor, got 1001"):
        judge.fashion_distance(torch.zeros(1001, 1, 32, 32))
