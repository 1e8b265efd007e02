"""Two processes on the CPU train what one trains, keep one codebook, and write one set of files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minar import GPT, VQVAE, Decoder, Encoder, Transformer, VectorQuantizer
from minar.lab import checkpoint, codebook
from minar.lab.train import fit

HERE = Path(__file__).parent

WORKER = """
import os, sys, torch, test_distributed
torch.set_num_threads(1)
test_distributed.train(sys.argv[1], os.environ["RANK"])
torch.distributed.destroy_process_group()
"""


@checkpoint.register
class Sure(GPT):
    """Labels are never dropped, so that processes differ in nothing but their rows."""

    def forward(self, tokens, label):
        return super().forward(tokens, label, p_drop=0.0)


@checkpoint.register
class Watched(VectorQuantizer):
    """Says how many codes it moved."""

    moved = 0

    def restart(self, z, generator=None):
        n = super().restart(z, generator)
        Watched.moved += n
        return n


def train(folder, rank):
    """Each process names an `out` of its own, so that a second writer would show."""
    codebook.EVERY = 2
    options = {"batch": 8, "device": "cpu", "progress": False, "log_every": 2, "ema": 0.5}
    torch.manual_seed(0)
    tokens, label = torch.randint(12, (40, 6)), torch.randint(5, (40,))
    images = torch.rand(40, 1, 8, 8) * 2 - 1
    gpt = Sure(Transformer(16, 1, 2, 24), 12, 5, (2, 3))
    fit(gpt, (tokens, label), 6, out=f"{folder}/out{rank}", **options)

    vqvae = VQVAE(Encoder(1, 4, 8, (1, 1), 1), Decoder(1, 4, 8, (1, 1), 1), Watched(96, 4))
    vqvae.quantizer.started.fill_(False)
    fit(vqvae, (images,), 6, **options)
    checkpoint.save(f"{folder}/gpt{rank}.safetensors", gpt)
    checkpoint.save(f"{folder}/vqvae{rank}.safetensors", vqvae)
    world = dist.get_world_size() if dist.is_initialized() else 1
    Path(folder, f"rank{rank}.json").write_text(json.dumps({"moved": Watched.moved, "world": world}))


def launch(folder):
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker, folder]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(codebook, "EVERY", codebook.EVERY)
    launch(tmp_path)
    told = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [t["world"] for t in told] == [2, 2] and all(t["moved"] for t in told), "no code was restarted"

    first, second = (checkpoint.load(tmp_path / f"vqvae{rank}.safetensors").state_dict() for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first if k != "quantizer.hits")

    first, second = (checkpoint.load(tmp_path / f"gpt{rank}.safetensors").state_dict() for rank in (0, 1))
    assert all(torch.equal(first[k], second[k]) for k in first)
    (tmp_path / "alone").mkdir()
    train(tmp_path / "alone", 0)
    alone = checkpoint.load(tmp_path / "alone" / "gpt0.safetensors").state_dict()
    gap = max(float((alone[k] - first[k]).abs().max()) for k in alone)
    assert gap < 1e-5, f"weights of two processes differ from those of one by {gap:.2g}"

    assert {p.name for p in (tmp_path / "out0").iterdir()} == {"log.jsonl", "state.safetensors", "model.safetensors"}
    assert not (tmp_path / "out1").exists(), "only rank 0 may write"
