"""Training: it learns, it repeats itself, and a run that was killed at any moment goes on as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from families import batch, model
from hypothesis import given, settings
from hypothesis import strategies as st

from minar import FSQ, GPT, VQVAE, CosineQuantizer, Decoder, Encoder, Transformer, VectorQuantizer
from minar.lab import checkpoint, codebook, resume, train
from minar.lab.train import Run, fit, pick_rows
from minar.papers import rar


def gpt():
    torch.manual_seed(0)
    return GPT(Transformer(16, 1, 2, 24), vocab=8, n_classes=2, grid=(2, 2))


def vqvae(quantizer=None):
    torch.manual_seed(0)
    return VQVAE(Encoder(1, 4, 8, (1, 1), 1), Decoder(1, 4, 8, (1, 1), 1), quantizer or VectorQuantizer(16, 4))


def sentences():
    """Four tokens that follow from the label and the first one, so there is something to learn."""
    first, label = torch.arange(8).repeat(4), torch.arange(2).repeat_interleave(16)
    return (first[:, None] + (1 + label[:, None]) * torch.arange(4)) % 8, label


def stripes():
    phase = torch.rand(48, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 6
    return ((torch.arange(8) * torch.linspace(0.2, 1.5, 48)[:, None, None, None] + phase).sin().repeat(1, 1, 8, 1),)


def short(model, data, steps=6, **options):
    known = {"batch": 8, "device": "cpu", "progress": False, "log_every": 1}
    return fit(model, data, steps, **(known | options))


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_gpt_learns(tmp_path):
    model, random = gpt(), torch.get_rng_state()
    log = short(model, sentences(), 200, lr=1e-2, log_every=50, out=tmp_path)
    assert torch.equal(torch.get_rng_state(), random), "fit must leave the caller's randomness alone"
    assert [line["step"] for line in log] == [50, 100, 150, 200]
    assert log[0]["loss"] < 2.0794 and log[-1]["loss"] < 0.9 < log[0]["loss"]  # ln 8, and ln 8 / 4 is the best
    assert log[-1]["lr"] < 1e-4 and all(line["images_per_s"] > 0 for line in log) and "usage" not in log[0]
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == log
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.jsonl", "model.safetensors", "state.safetensors"]
    assert same(weights(checkpoint.load(tmp_path / "model.safetensors")), weights(model)) and not model.training
    tokens, label = sentences()
    assert torch.equal(model.generate(label, prompt=tokens[:, :1], temperature=0), tokens)


@pytest.mark.parametrize("quantizer", [VectorQuantizer(16, 4), CosineQuantizer(16, 4), FSQ((3, 3, 2, 2))])
def test_vqvae_learns(quantizer):
    log = short(vqvae(quantizer), stripes(), 120, lr=5e-3, log_every=20)
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert all(0 < line["usage"] <= 1 <= line["perplexity"] <= quantizer.vocab for line in log)


def test_one_seed_gives_the_same_weights_and_another_one_others():
    runs = []
    for seed in (0, 0, 1):
        model = vqvae()
        short(model, stripes(), seed=seed)
        torch.randn(3)  # what happens outside must not matter
        runs.append(weights(model))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_the_average_is_what_is_left(monkeypatch):
    seen, update = [], Run.update

    def watch(run):
        if not seen:
            seen.append(weights(run.model)["embed.weight"])
        update(run)
        seen.append(weights(run.model)["embed.weight"])

    monkeypatch.setattr(Run, "update", watch)
    model = gpt()
    short(model, sentences(), 6, ema=0.3)
    average = seen[0]
    for step, value in enumerate(seen[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
    assert torch.allclose(model.embed.weight, average, atol=1e-6)
    assert not torch.allclose(model.embed.weight, seen[-1], atol=1e-5)


def run(model=None, **recipe):
    return Run(model or gpt(), {"steps": 100, "lr": 1.0, "weight_decay": 0.05, "ema": 0.9} | recipe)


def test_learning_rate():
    r, rates = run(), []
    for r.step in range(100):
        rates.append(r.lr)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])  # a twentieth
    falling = rates[5:]
    assert falling[0] == 1 and falling == sorted(falling, reverse=True)
    assert rates[5 + 48] == pytest.approx(0.5, abs=0.02) and 0 < rates[-1] < 1e-3
    r.step = 100
    assert r.lr == pytest.approx(0, abs=1e-9)
    assert run(steps=1).lr == 1


def test_weight_decay_is_for_matrices_and_never_for_codes():
    r = run(vqvae())
    decays = {id(p): group["weight_decay"] for group in r.optimizer.param_groups for p in group["params"]}
    for name, p in r.model.named_parameters():
        assert decays[id(p)] == (0.05 if p.dim() > 1 and name != "quantizer.codebook" else 0), name


@given(n=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_row_is_seen_once_per_epoch(n, batch, seed):
    steps = 3 * n // batch + 1
    parts = [pick_rows(n, batch, step, seed) for step in range(steps)]
    assert all(len(part) == batch for part in parts)
    rows = torch.cat(parts)
    for epoch in rows[: len(rows) // n * n].split(n):
        assert sorted(epoch.tolist()) == list(range(n))
    assert len(set(rows[len(rows) // n * n :].tolist())) == len(rows) % n


def test_epochs_and_seeds_differ():
    first, second = pick_rows(50, 100, 0, 0).split(50)
    assert not torch.equal(first, second) and not torch.equal(first, pick_rows(50, 50, 0, 1))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_training_is_training():
    losses = [[line["loss"] for line in short(gpt(), sentences(), 4, compiled=c)] for c in (False, True)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[0][-1] < losses[0][0]


# Codebooks.


def watched(monkeypatch):
    """Keeps (step, codebook, Adam's moments, average) before and after each look of the gardener."""
    seen, tend = [], codebook.Gardener.tend

    def keep(run):
        q = run.model.quantizer
        adam = run.optimizer.state.get(q.codebook, {})
        moments = [adam[k].clone() for k in ("exp_avg", "exp_avg_sq") if k in adam]
        return q.codebook.detach().clone(), moments, run.average["quantizer.codebook"].clone(), q.hits.clone()

    def watch(self, run, part):
        before = keep(run)
        tend(self, run, part)
        seen.append((run.step, part, before, keep(run)))

    monkeypatch.setattr(codebook.Gardener, "tend", watch)
    return seen


def test_codes_start_on_data_and_dead_ones_move(monkeypatch):
    seen = watched(monkeypatch)
    model = vqvae(VectorQuantizer(512, 4))  # a batch has 64 encodings: many codes die
    encoder = vqvae().encoder  # as it was when training began
    short(model, stripes(), 128, batch=4, log_every=50)
    assert bool(model.quantizer.started)

    step, part, (before, *_), (after, _, average, hits) = seen[0]
    rows = encoder(part[0]).flatten(2).transpose(1, 2).flatten(0, 1)
    away = [(codes[:, None] - rows.detach()).norm(dim=-1).amin(1).max() for codes in (before, after)]
    assert step == 0 and away[1] < 1e-5 and away[0] > 0.1
    assert torch.equal(average, after) and not hits.any() and len(after.unique(dim=0)) == 64

    changed = [step for step, _, before, after in seen[1:] if not torch.equal(before[0], after[0])]
    assert changed == [100]
    _, _, (before, _, old_average, hits), (after, _, average, none) = seen[100]
    dead = hits == 0
    assert dead.any() and not dead.all(), "nothing died, or everything: this run proves nothing"
    assert torch.equal(before[~dead], after[~dead]) and (before[dead] != after[dead]).any(1).all()
    assert torch.equal(average[dead], after[dead]) and torch.equal(average[~dead], old_average[~dead])
    assert hits.sum() == 100 * 4 * 16 and not none.any()


def test_momentum_belongs_to_the_code_that_is_gone(monkeypatch):
    monkeypatch.setattr(codebook, "EVERY", 2)  # so often that codes die which were used before
    seen = watched(monkeypatch)
    short(vqvae(VectorQuantizer(48, 4)), stripes(), 20, batch=1, lr=1e-2)
    moved = 0
    for step, _, (_, old, _, hits), (_, new, _, _) in seen:
        dead = hits == 0 if step and step % 2 == 0 and step < 16 else hits < 0
        assert len(new) == (2 if step else 0)
        for is_now, was in zip(new, old):
            assert not is_now[dead].any() and torch.equal(is_now[~dead], was[~dead])
            moved += int(was[dead].any())
    assert moved, "no dead code had momentum: this run proves nothing"


def test_no_restart_near_the_end(monkeypatch):
    monkeypatch.setattr(codebook, "EVERY", 5)
    seen = watched(monkeypatch)
    short(vqvae(VectorQuantizer(256, 4)), stripes(), 20, batch=4)  # more codes than encodings: some are always dead
    moved = [step for step, _, before, after in seen if not torch.equal(before[0], after[0])]
    assert moved == [0, 5, 10, 15]
    seen.clear()
    short(vqvae(VectorQuantizer(256, 4)), stripes(), 18, batch=4)
    assert [step for step, _, before, after in seen if not torch.equal(before[0], after[0])] == [0, 5, 10]


@pytest.mark.parametrize("quantizer", [VectorQuantizer(64, 4), CosineQuantizer(64, 4)])
def test_a_trained_codebook_is_never_moved(monkeypatch, quantizer):
    monkeypatch.setattr(codebook, "EVERY", 2)
    quantizer.started.fill_(True)
    seen = watched(monkeypatch)
    short(vqvae(quantizer), stripes(), 6)
    assert len(seen) == 6 and all(torch.equal(before[0], after[0]) for _, _, before, after in seen)
    assert [int(after[3].sum()) for *_, after in seen] == [0, 128, 0, 128, 0, 128]  # but its use is counted anew


def test_a_codebook_stays_on_the_sphere_when_it_starts():
    model = vqvae(CosineQuantizer(16, 4))
    model.quantizer.start_from(model.encoder(stripes()[0]).detach())
    assert torch.allclose(model.quantizer.codebook.norm(dim=1), torch.ones(16), atol=1e-5)


# Resuming.


RUN = """
import os, signal, sys
import test_train
from minar.lab import checkpoint, resume, train

what, at, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

update, replace, fsync = train.Run.update, os.replace, os.fsync
steps = 0

def count(run):
    global steps
    steps = run.step + 1
    update(run)
    if what == "training" and run.step == at:
        die()

train.Run.update = count
if what == "writing":
    os.fsync = lambda file: die() if steps == at else fsync(file)
if what == "renaming":
    os.replace = lambda a, b: die() if steps == at else replace(a, b)
test_train.long(out)
print("not killed")
"""


def long(out):
    """A run with everything that must come back: restarts, momentum, an average, and labels that are dropped."""
    codebook.EVERY = 4
    model = Both()
    log = fit(model, (*stripes(), torch.arange(48) % 2), 14, 8, device="cpu", out=out, save_every=0, log_every=3)
    return model, log


@checkpoint.register
class Both(VQVAE):
    """A tokenizer and a transformer in one, so that one run tries both."""

    def __init__(self):
        super().__init__(*vars(vqvae(VectorQuantizer(64, 4)))["_modules"].values())
        self.gpt = GPT(Transformer(16, 1, 2, 24), vocab=64, n_classes=2, grid=(4, 4))

    def check(self, images, label=None, wait=False):
        super().check(images, wait)

    def forward(self, images, label):
        return super().forward(images) + self.gpt(self.encode(images), label, p_drop=0.3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    every = codebook.EVERY
    model, log = long(tmp_path_factory.mktemp("whole"))
    codebook.EVERY = every
    return weights(model), log


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
@pytest.mark.parametrize(("what", "at"), [("training", 1), ("training", 9), ("writing", 8), ("renaming", 8)])
def test_a_killed_run_goes_on(undisturbed, what, at, tmp_path, monkeypatch):
    monkeypatch.setattr(codebook, "EVERY", codebook.EVERY)
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, what, str(at), str(tmp_path)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    if at > 1:
        assert checkpoint.read(tmp_path / resume.STATE)[1]["step"] == at - 1, "it died elsewhere than planned"
    model, log = long(tmp_path)
    assert same(weights(model), undisturbed[0])
    # A killed run loses at most the part of a mean that it had not written yet.
    assert [line["step"] for line in log] == [line["step"] for line in undisturbed[1]]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_a_finished_run_trains_nothing_more(tmp_path, monkeypatch):
    model = gpt()
    log = short(model, sentences(), out=tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Run, "update", lambda *args: pytest.fail("it trained"))
    again = gpt()
    assert short(again, sentences(), out=tmp_path) == log
    assert same(weights(again), weights(model))
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


class Stop(Exception):
    pass


def stop_at(n):
    def update(run, right=Run.update):
        right(run)
        if run.step == n:
            raise Stop

    return update


def test_the_same_model_goes_on_after_an_interruption(tmp_path, monkeypatch):
    """In a notebook the model that was interrupted is still there, with a codebook that has started already."""
    monkeypatch.setattr(codebook, "EVERY", 2)
    whole, broken = vqvae(VectorQuantizer(96, 4)), vqvae(VectorQuantizer(96, 4))
    broken.load_state_dict(whole.state_dict())
    short(whole, stripes(), 10, batch=2)
    with monkeypatch.context() as m, pytest.raises(Stop):
        m.setattr(Run, "update", stop_at(4))
        short(broken, stripes(), 10, batch=2, out=tmp_path, save_every=0)
    assert broken.quantizer.started
    short(broken, stripes(), 10, batch=2, out=tmp_path)
    assert same(weights(broken), weights(whole))


def test_a_plan_is_told_how_much_is_done_and_goes_on_there(tmp_path, monkeypatch):
    """Annealing that begins anew at a resume would give other weights."""
    told, draw = [], rar.annealed((4, 4), 0.2, 0.6)

    def plan(rows, done):
        told.append((rows, done))
        return draw(rows, done)

    whole, broken, again = (model() for _ in range(3))
    short(whole, batch(rows=16), 5, plan=plan)
    assert told == [(8, 0.0), (8, 0.0), (8, 0.2), (8, 0.4), (8, 0.6), (8, 0.8)]  # the first only looks at it
    with monkeypatch.context() as m, pytest.raises(Stop):
        m.setattr(Run, "update", stop_at(3))
        short(broken, batch(rows=16), 5, plan=plan, out=tmp_path, save_every=0)
    told.clear()
    short(again, batch(rows=16), 5, plan=plan, out=tmp_path)
    assert told == [(8, 0.0), (8, 0.4), (8, 0.6), (8, 0.8)]
    assert same(weights(again), weights(whole))


def test_lines_after_the_resumed_step_are_taken_back(tmp_path, monkeypatch):
    save = resume.save

    def save_until_3(run, path):
        if run.step <= 3:
            save(run, path)

    with monkeypatch.context() as m, pytest.raises(Stop):
        m.setattr(train.resume, "save", save_until_3)
        m.setattr(Run, "update", stop_at(6))
        short(gpt(), sentences(), 8, out=tmp_path, save_every=0)
    file = tmp_path / "log.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3, 4, 5]
    with file.open("a") as log:
        log.write('{"step": 6, "lo')  # a line that the kill cut in half
    log = short(gpt(), sentences(), 8, out=tmp_path)
    assert [line["step"] for line in log] == list(range(1, 9))
    assert [json.loads(line) for line in file.read_text().splitlines()] == log
