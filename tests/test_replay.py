"""A training step as a CUDA graph: the same weights as without, and never for a model that it does not fit."""

import random
import warnings

import pytest
import torch
from torch import nn

from minar import GPT, VQVAE, CosineQuantizer, Decoder, Encoder, Transformer
from minar.lab import codebook, replay, train
from minar.lab.train import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def gpt():
    tokens = torch.randint(8, (64, 4), generator=torch.Generator().manual_seed(0))
    return GPT(Transformer(16, 1, 2, 24), vocab=8, n_classes=2, grid=(2, 2)), (tokens, tokens[:, 0] % 2)


def vqvae():
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return VQVAE(Encoder(1, 4, 8, (1, 2), 1), Decoder(1, 4, 8, (1, 2), 1), CosineQuantizer(16, 4)), (images,)


def trained(make, steps=24, **options):
    torch.manual_seed(0)
    model, rows = make()
    log = fit(model, rows, steps, batch=8, progress=False, log_every=1, **options)
    return model.state_dict(), [line["loss"] for line in log]


def counted(monkeypatch):
    calls, right = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (calls.append(1), right(graph)))
    return calls


@pytest.mark.parametrize("make", [gpt, vqvae])
def test_replayed_training_ends_in_the_same_weights(make, monkeypatch, tmp_path):
    monkeypatch.setattr(codebook, "EVERY", 5)
    calls = counted(monkeypatch)
    weights, losses = trained(make)
    assert len(calls) == 24 - replay.WARM
    with monkeypatch.context() as m:
        m.setattr(train, "Replay", lambda step, model: step)
        plain, plain_losses = trained(make)
    assert losses == pytest.approx(plain_losses, rel=1e-3)
    for name, value in plain.items():
        assert torch.allclose(weights[name].float(), value.float(), rtol=1e-2, atol=1e-4), name


def test_replayed_labels_are_dropped_anew_at_each_step(monkeypatch):
    """The recording must not repeat its random numbers: the drops are those of the step itself."""
    dropped, right = [], GPT.forward

    def forward(self, tokens, label):
        self.fresh.copy_(torch.rand(8, device=label.device))
        return right(self, tokens, label)

    monkeypatch.setattr(GPT, "forward", forward)
    model, rows = gpt()
    model.register_buffer("fresh", torch.zeros(8))
    monkeypatch.setattr(train.Run, "update", lambda run: (dropped.append(run.model.fresh.tolist()), step(run)))
    fit(model, rows, 20, batch=8, progress=False)
    with monkeypatch.context() as m:
        m.setattr(train, "Replay", lambda step, model: step)
        fit(model, rows, 20, batch=8, progress=False)
    assert dropped[:20] == dropped[20:] and len({tuple(row) for row in dropped}) == 20


def step(run):
    run.step += 1


class Odd(nn.Module):
    """Python decides, at each call, what is computed."""

    def __init__(self, decide):
        super().__init__()
        self.weight, self.decide = nn.Parameter(torch.ones(4)), decide

    def forward(self, x):
        return (x * self.weight)[:, : self.decide(x)].square().mean()


@pytest.mark.parametrize(
    ("decide", "why"),
    [
        (lambda x: random.randint(1, 4), "replayed it gives a loss of"),
        (lambda x: 1 + int(x.sum() > 1e9), "trains kernel by kernel"),
        (lambda x: int(torch.randint(1, 5, (), device="cpu").to(x.device)), "trains kernel by kernel"),
    ],
    ids=["a shape", "a look at the device", "a copy from the host"],
)
def test_a_step_that_is_not_always_the_same_is_not_replayed(decide, why):
    def make():
        random.seed(0)
        return Odd(decide), (torch.randn(64, 4, generator=torch.Generator().manual_seed(0)),)

    with pytest.warns(UserWarning, match=why):
        weights, losses = trained(make)
    assert len(losses) == 24 and torch.isfinite(weights["weight"]).all()
    torch.rand(3, device="cuda")  # a recording that failed leaves nothing behind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(gpt)
