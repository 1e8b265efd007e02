"""Wrong inputs: each is refused with one line that says what was given, what was expected, and what to do."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from minar import (
    FSQ,
    GPT,
    VQVAE,
    AnyOrderAR,
    CategoricalHead,
    ClassLabel,
    CosineQuantizer,
    Decoder,
    Encoder,
    KVCache,
    MaskedAR,
    NextStepAR,
    Plan,
    TextPrefix,
    Transformer,
    generate,
)
from minar import VectorQuantizer as VQ
from minar.lab import checkpoint, profile
from minar.lab.checkpoint import CheckpointError
from minar.lab.train import fit
from minar.papers import jacobi
from minar.papers.blockwise import Blockwise
from minar.plan import cosine_sizes, random_order, random_sets, raster, region_groups, rows, scales


def gpt(width=16, n_layers=1):
    return GPT(Transformer(width, n_layers, 2, hidden=16), vocab=12, n_classes=5, grid=(2, 3))


def vqvae():
    return VQVAE(Encoder(3, 4, 8, (1, 1), 1), Decoder(3, 4, 8, (1, 1), 1), VQ(12, 4))


TOKENS, LABEL = torch.zeros(2, 6, dtype=torch.long), torch.zeros(2, dtype=torch.long)
IMAGES = torch.zeros(2, 3, 8, 8)


def refuses(call, message, error=ValueError):
    """`call` raises `error` itself, not a subclass, in one line that holds `message`."""
    with pytest.raises(error, match=re.escape(message)) as raised:
        call()
    assert raised.type is error and "\n" not in str(raised.value)


@pytest.mark.parametrize("door", ["__call__", "encode", "reconstruct"])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (IMAGES + 2, ValueError, "must lie in [-1, 1], got 2 to 2: for 0..1 use 2 * images - 1"),
        (IMAGES + math.nan, ValueError, "must lie in [-1, 1], got nan to nan"),
        (IMAGES[:, :1], ValueError, "this model reads 3 channel(s), got 1 in (2, 1, 8, 8)"),
        (IMAGES[..., :7], ValueError, "height and width must be multiples of 2, got (8, 7): pad or resize"),
        (IMAGES.byte(), TypeError, "images must be a float tensor, got torch.uint8: for bytes use images / 127.5 - 1"),
        (IMAGES[0], ValueError, "images must have shape (B, C, H, W), got (3, 8, 8)"),
    ],
)
def test_images(door, images, error, message):
    refuses(lambda: getattr(vqvae(), door)(images), message, error)


@pytest.mark.parametrize(
    ("tokens", "label", "error", "message"),
    [
        (TOKENS + 12, LABEL, ValueError, "tokens must lie in 0..11, got values from 12 to 12"),
        (TOKENS - 1, LABEL, ValueError, "tokens must lie in 0..11, got values from -1 to -1"),
        (TOKENS[:, :5], LABEL, ValueError, "an image has 6 tokens (2x3), got 5 per row"),
        (TOKENS.float(), LABEL, TypeError, "tokens must be a tensor of torch.long, got torch.float32: convert with"),
        (TOKENS[0], LABEL, ValueError, "tokens must have 2 dimension(s), got shape (6,)"),
        (TOKENS.tolist(), LABEL, TypeError, "tokens must be a tensor of torch.long, got list"),
        (TOKENS, LABEL + 6, ValueError, "label must lie in 0..5, got values from 6 to 6"),  # 5 is the null class
        (TOKENS, LABEL.float(), TypeError, "label must be a tensor of torch.long, got torch.float32"),
        (TOKENS, LABEL[:1], ValueError, "one label per row of tokens: got 1 labels for 2 rows"),
        (TOKENS, LABEL[:, None], ValueError, "label must have 1 dimension(s), got shape (2, 1)"),
    ],
)
def test_tokens_and_labels(tokens, label, error, message):
    refuses(lambda: gpt()(tokens, label), message, error)


def test_logits_of_a_whole_image():
    refuses(lambda: gpt().logits(TOKENS, LABEL), "at most 5 tokens have a token after them, got 6: cut the last")


@pytest.mark.parametrize("quantizer", [VQ(12, 4), CosineQuantizer(12, 4), FSQ((3, 4))])
def test_codes(quantizer):
    refuses(lambda: quantizer.decode(TOKENS + 12), "tokens must lie in 0..11, got values from 12 to 12")
    refuses(lambda: quantizer.decode(TOKENS), "6 tokens do not fill a 2x2 grid: pass size=(h, w)")
    refuses(lambda: quantizer.lookup(TOKENS.float()), "tokens must be a tensor of torch.long", TypeError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg": -1}, "cfg must be a number in [0, inf], got -1"),
        ({"cfg": math.nan}, "cfg must be a number in [0, inf], got nan"),
        ({"top_k": 13}, "top_k must be a number in [0, 12], got 13"),
        ({"top_k": -1}, "top_k must be a number in [0, 12], got -1"),
        ({"top_p": 0}, "top_p must be a number in (0, 1], got 0"),
        ({"top_p": 1.5}, "top_p must be a number in (0, 1], got 1.5"),
        ({"top_p": math.nan}, "top_p must be a number in (0, 1], got nan"),
        ({"temperature": -0.5}, "temperature must be a number in [0, inf], got -0.5"),
        ({"prompt": TOKENS.repeat(1, 2)}, "prompt must be (B, n) with B = 2 and n <= 6, got (2, 12)"),
        ({"prompt": TOKENS[:1]}, "prompt must be (B, n) with B = 2 and n <= 6, got (1, 6)"),
        ({"prompt": TOKENS + 12}, "prompt must lie in 0..11, got values from 12 to 12"),
    ],
)
def test_generate(options, message):
    refuses(lambda: gpt().generate(LABEL, **options), message)


def test_generate_label():
    refuses(lambda: gpt().generate(LABEL + 6), "label must lie in 0..5, got values from 6 to 6")
    refuses(lambda: gpt().generate(3), "label must be a tensor of torch.long, got int", TypeError)


def test_knobs_of_the_head_are_looked_at_before_anything_is_drawn():
    refuses(lambda: CategoricalHead(4, 3).sample(torch.zeros(1, 1, 4), temperature=math.inf), "got inf")


def test_cache():
    model, cache = gpt(), KVCache(4)
    refuses(lambda: model.logits(TOKENS[:, :5], LABEL, cache), "the cache has room for 4 slots and 6 are needed")
    model.logits(TOKENS[:, :2], LABEL, cache)
    one = TOKENS[:1, :3], LABEL[:1]
    refuses(lambda: model.logits(*one, cache), "the cache holds a batch of 2, not 1: use a new cache")
    refuses(lambda: KVCache(0), "a cache needs room for at least one slot, got max_len=0")


def test_sizes_of_models():
    refuses(lambda: Transformer(18, 1, 4), "width 18 must split into 4 heads of a multiple of 4 channels")
    refuses(lambda: Transformer(24, 1, 4), "width 24 must split into 4 heads of a multiple of 4 channels")
    refuses(lambda: VQVAE(Encoder(3, 4), Decoder(3, 4), VQ(12, 6)), "encoder gives 4 channels, quantizer reads 6")
    refuses(lambda: VQVAE(Encoder(3, 4), Decoder(3, 6), VQ(12, 4)), "quantizer gives 4 channels, decoder reads 6")
    refuses(lambda: FSQ((8, 1)), "each channel needs at least 2 levels, got (8, 1)")
    refuses(lambda: FSQ(()), "each channel needs at least 2 levels, got ()")
    refuses(lambda: VQ(1, 4), "vocab must be a number in [2, inf], got 1")


def test_profile(monkeypatch):
    monkeypatch.setenv("MINAR_PROFILE", "fast")
    refuses(profile.profile, "MINAR_PROFILE is 'fast', expected smoke, lab or full")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    message = "device 'cuda' was asked for, but this torch finds none: use 'auto' or 'cpu'"
    refuses(lambda: fit(gpt(), (TOKENS, LABEL), 1, device="cuda"), message, RuntimeError)


# Checkpoints.


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path / "model.safetensors", gpt())


def unreadable(path, message):
    refuses(lambda: checkpoint.load(path), f"{path}: {message}", CheckpointError)


def rewrite(path, tensors=(), **header):
    """The same file with other tensors (None: left out) and another header."""
    old, known = checkpoint.read(path)
    new = {k: v for k, v in (old | dict(tensors)).items() if v is not None}
    checkpoint.write(path, new, known | header)


def test_missing_file(saved):
    other = saved.with_name("modell.safetensors")
    unreadable(other, f"no such file; {saved.parent}/ holds model.safetensors")
    unreadable(saved.parent / "gone" / "model.safetensors", "no such file; ")
    unreadable(saved.parent, "no such file; ")


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_truncated_file(saved, left):
    saved.write_bytes(saved.read_bytes()[:left])
    unreadable(saved, f"truncated or not safetensors ({saved.stat().st_size} bytes); copy or train it again")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_not_opened(saved, zipped):
    torch.save(gpt().state_dict(), saved, _use_new_zipfile_serialization=zipped)
    unreadable(saved, "a PyTorch pickle, which is never opened here; official .pt files are read by minar.ports")


def test_foreign_safetensors(saved):
    save_file({"weight": torch.zeros(2)}, saved)
    unreadable(saved, "safetensors, but not written by minar; official weights go through minar.ports")


def test_foreign_header(saved):
    rewrite(saved, model={"class": "Diffusion", "args": {}})
    unreadable(saved, "holds a 'Diffusion'; known are ")
    rewrite(saved, model={"class": "FSQ", "args": {"stufen": [4, 4]}})
    unreadable(saved, "FSQ takes other arguments here (")


def test_other_tensors(saved):
    rewrite(saved, {"embed.weight": torch.zeros(12, 20)})
    unreadable(saved, "'embed.weight' is (12, 20), GPT expects (12, 16): build it with the same sizes")
    rewrite(saved, {"embed.weight": None, "head.weight": None})
    unreadable(saved, "misses 'embed.weight', which GPT needs: is it another model?")
    rewrite(saved, {"embed.weight": torch.zeros(12, 16), "head.weight": torch.zeros(12, 16), "bias": torch.zeros(1)})
    unreadable(saved, "holds 'bias', which GPT has no place for")


def test_unknown_class_is_not_saved(tmp_path):
    message = "Linear is not known to checkpoints: decorate it with @minar.lab.checkpoint.register"
    refuses(lambda: checkpoint.save(tmp_path / "x.safetensors", torch.nn.Linear(2, 2)), message, TypeError)
    assert not list(tmp_path.iterdir())


def fails_to_save(call, message):
    with pytest.raises(OSError, match=re.escape(message)) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("I was here first")
    for path in (tmp_path / "file" / "model.safetensors", tmp_path / "file" / "deep" / "model.safetensors"):
        fails_to_save(lambda path=path: checkpoint.save(path, gpt()), f"cannot save to {path} (")
    fails_to_save(lambda: checkpoint.save(tmp_path, gpt()), f"cannot save to {tmp_path}: it is not a file")
    for out in (tmp_path / "file", tmp_path / "file" / "deep"):
        model = gpt()
        fails_to_save(lambda model=model, out=out: fit(model, (TOKENS, LABEL), 1, out=out), f"cannot write to {out} (")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(saved):
    old = saved.read_bytes()
    temporary = saved.with_name("model.safetensors.tmp")
    temporary.symlink_to("/dev/full")
    message = f"cannot save to {saved} (No space left on device): 0.0 MB are needed there; an older file is untouched"
    fails_to_save(lambda: checkpoint.save(saved, gpt(n_layers=2)), message)
    assert saved.read_bytes() == old and [p.name for p in saved.parent.iterdir()] == [saved.name]


# Training.


def test_resume_of_another_run(tmp_path):
    data = TOKENS, LABEL
    fit(gpt(), data, 2, batch=2, out=tmp_path, device="cpu", progress=False)
    state = tmp_path / "state.safetensors"
    before = state.read_bytes()

    def again(model, **changes):
        recipe = {"data": data, "steps": 2, "batch": 2, "out": tmp_path, "device": "cpu", "progress": False}
        return lambda: fit(model, **(recipe | changes))

    wider = f"{state}: was written by another architecture: use another folder, or delete this one"
    refuses(again(gpt(width=24)), wider, CheckpointError)
    refuses(again(gpt(), lr=0.5), f"{state}: was trained otherwise (lr was 0.001, is 0.5): use ano", CheckpointError)
    fewer = {"data": (TOKENS[:1], LABEL[:1]), "steps": 9}
    refuses(again(gpt(), **fewer), "steps was 2, is 9, data was [[2, 6], [2]], is [[1, 6], [1]]", CheckpointError)
    assert state.read_bytes() == before
    unreadable(state, "")  # a state is not a model

    checkpoint.save(state, gpt())
    refuses(again(gpt()), f"{state}: is a model, not the state of a training run", CheckpointError)
    state.write_bytes(before[:-1])
    refuses(again(gpt()), f"{state}: truncated or not safetensors", CheckpointError)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (gpt, TOKENS, TypeError, "data must be a tuple of tensors, (images,) or (tokens, labels), got a Tensor"),
        (gpt, (), TypeError, "data must be a tuple of tensors, (images,) or (tokens, labels), got an empty tuple"),
        (gpt, (TOKENS, LABEL[:1]), ValueError, "data must have equal, non-zero first dimensions, got [2, 1]"),
        (gpt, (TOKENS[:0], LABEL[:0]), ValueError, "data must have equal, non-zero first dimensions, got [0, 0]"),
        (gpt, (TOKENS,), TypeError, "GPT trains on (tokens, label), got 1 tensor(s)"),
        (gpt, (TOKENS + 12, LABEL), ValueError, "tokens must lie in 0..11"),
        (vqvae, (IMAGES, LABEL), TypeError, "VQVAE trains on (images), got 2 tensor(s)"),
        (vqvae, (IMAGES.byte(),), TypeError, "images must be a float tensor, got torch.uint8"),
        (vqvae, (IMAGES + 1,), None, ""),
        (vqvae, (IMAGES + 1.1,), ValueError, "images must lie in [-1, 1], got 1.1 to 1.1"),
    ],
)
def test_data_for_fit(model, data, error, message):
    def call():
        return fit(model(), data, 1, batch=2, device="cpu", progress=False)

    if error:
        refuses(call, message, error)
    else:
        call()


def test_batch_and_processes(monkeypatch):
    data = TOKENS, LABEL
    refuses(lambda: fit(gpt(), data, 1, batch=0), "batch must be a multiple of the 1 process(es), got 0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    refuses(lambda: fit(gpt(), data, 1, batch=32), "batch must be a multiple of the 3 process(es), got 32")


def poisoned():
    model = gpt()
    with torch.no_grad():
        model.embed.weight[0, 0] = math.nan
    return model


@pytest.mark.parametrize("save_every", [0, 60])
def test_a_loss_that_is_no_number(tmp_path, save_every):
    def call():
        fit(poisoned(), (TOKENS, LABEL), 4, batch=2, device="cpu", out=tmp_path, save_every=save_every, progress=False)

    refuses(call, "the loss is nan at step ", FloatingPointError)
    # A state that is no number would be resumed, and fail, for ever.
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
    assert not [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


# Plans and the models that follow them.


@pytest.mark.parametrize(
    ("make", "message", "error"),
    [
        (lambda: Plan(torch.tensor([0, 1, 1, 3]), (1,) * 4), "pos must hold 0..3 once each: some overlap or are", None),
        (lambda: Plan(torch.tensor([0, 1, 2, 4]), (1,) * 4), "pos must hold 0..3 once each", None),
        (lambda: Plan(torch.tensor([[0, 1], [1, 1]]), (1, 1)), "row 1 of pos must hold 0..1 once each", None),
        (lambda: Plan(torch.arange(4), (2, 0, 2)), "each step needs at least one slot, got sizes (2, 0, 2)", None),
        (lambda: Plan(torch.arange(4), (2, 3)), "steps of 5 slots in all do not fit 4 positions", None),
        (lambda: Plan(torch.arange(4), ()), "each step needs at least one slot", None),
        (lambda: Plan(torch.arange(4.0), (4,)), "pos must be a tensor of torch.long, got torch.float32", TypeError),
        (lambda: Plan([0, 1], (2,)), "pos must be a tensor of torch.long, got list", TypeError),
        (lambda: Plan(torch.zeros(1, 1, 1).long(), (1,)), "pos must be (N,) or (B, N), got (1, 1, 1)", None),
        (lambda: region_groups(8, 6, 4), "a 8x6 grid does not split into 4x4 regions: choose a divisor", None),
        (lambda: region_groups(8, 8, 0), "per_side must be a number in [1, inf], got 0", None),
        (lambda: raster(0, 3), "a grid needs at least one row and one column, got 0x3", None),
        (lambda: rows(4, 4, 3), "4x4 tokens cannot be cut into steps of 3", None),
        (lambda: random_sets(2, 2, 5), "4 tokens can be drawn in 1 to 4 steps, not in 5", None),
        (lambda: cosine_sizes(4, 0), "4 tokens can be drawn in 1 to 4 steps, not in 0", None),
        (lambda: scales((1, 3, 2)), "the sides of the grids must grow, got (1, 3, 2)", None),
    ],
)
def test_plans(make, message, error):
    refuses(make, message, error or ValueError)


SHRINKING = Plan(torch.arange(6), (3, 2, 1))


def follower(family=NextStepAR):
    return family(
        Transformer(16, 1, 2, hidden=16), nn.Embedding(12, 16), ClassLabel(5, 16), CategoricalHead(16, 12), (2, 3)
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (raster(2, 2), "the plan has 4 slots, the model's images have 6 tokens"),
        (SHRINKING, "NextStepAR needs steps that do not shrink, got sizes (3, 2, 1): use AnyOrderAR or MaskedAR"),
        (random_order(2, 3, 3), "the plan has orders for a batch of 3, got a batch of 2"),
    ],
)
def test_a_plan_that_the_model_cannot_follow(plan, message):
    for call in (
        lambda: follower()(TOKENS, LABEL, plan),
        lambda: follower().nll(TOKENS, LABEL, plan),
        lambda: generate(follower(), LABEL, plan),
        lambda: fit(follower(), (TOKENS, LABEL), 1, 2, device="cpu", progress=False, plan=plan),
    ):
        refuses(call, message)
    for family in (AnyOrderAR, MaskedAR):
        assert generate(follower(family), LABEL, SHRINKING).shape == (2, 6)


@pytest.mark.parametrize(
    ("options", "message", "error"),
    [
        ({"cfg": -1.0}, "cfg must be a number in [0, inf], got -1.0", None),
        ({"cfg": math.nan}, "cfg must be a number in [0, inf], got nan", None),
        ({"cfg": lambda plan, s: math.nan}, "cfg must be a number in [0, inf], got nan", None),
        (
            {"prompt": TOKENS[:, :3], "prompt_steps": 2},
            "prompt must be (2, 6), a token for each position, got (2, 3)",
            None,
        ),
        ({"prompt": torch.zeros(2, 9).long()}, "prompt must be (2, 6), a token for each position, got (2, 9)", None),
        ({"prompt": TOKENS + 12, "prompt_steps": 1}, "tokens must lie in 0..11, got values from 12 to 12", None),
        ({"prompt": TOKENS, "prompt_steps": 7}, "prompt_steps must lie in 0..6, the steps of the plan, got 7", None),
        ({"prompt": TOKENS, "prompt_steps": -1}, "prompt_steps must lie in 0..6", None),
        ({"prompt_steps": 2}, "prompt_steps is 2, but there is no prompt", None),
        ({"temperature": -1.0}, "temperature must be a number in [0, inf], got -1.0", None),
        ({"top_k": 99}, "top_k must be a number in [0, 12], got 99", None),
        ({"cond": LABEL + 6}, "label must lie in 0..5, got values from 6 to 6", None),
        ({"cond": LABEL.float()}, "label must be a tensor of torch.long, got torch.float32", TypeError),
    ],
)
def test_decoding_along_a_plan(options, message, error):
    cond = options.pop("cond", LABEL) if "cond" in options else LABEL
    refuses(lambda: generate(follower(), cond, raster(2, 3), **options), message, error or ValueError)


def test_caches_that_do_not_fit():
    masked, plan = follower(MaskedAR), raster(2, 3)
    prefix = masked.prefix(LABEL)
    refuses(lambda: masked.hidden(TOKENS, prefix, plan, 0, 1, KVCache(9)), "MaskedAR cannot use a cache")
    m, cache = follower(), KVCache(9)
    m.hidden(TOKENS, prefix, plan, 0, 4, cache)
    refuses(
        lambda: m.hidden(TOKENS, prefix, plan, 2, 5, cache), "the cache holds 4 slots, so slot 2 was computed before"
    )


def test_captions():
    text = TextPrefix(7, 3, 16)
    refuses(lambda: text.check(torch.zeros(2, 4).long()), "captions must have 3 words (fill with 7), got 4")
    refuses(lambda: text.check(torch.full((2, 3), 9)), "words must lie in 0..8, got values from 9 to 9")


def test_a_model_without_a_plan():
    message = "GPT follows no plan: leave it out"
    refuses(lambda: fit(gpt(), (TOKENS, LABEL), 1, 2, device="cpu", plan=raster(2, 3)), message, TypeError)


def test_guess_and_verify_needs_single_tokens():
    message = "guess and verify needs a plan of one token a step, such as raster"
    refuses(lambda: jacobi.decode(follower(), LABEL, rows(2, 3, 3)), message)
    refuses(lambda: Blockwise(follower(), 2, 8).decode(LABEL, rows(2, 3, 3)), message)
    refuses(lambda: jacobi.decode(follower(), LABEL, raster(2, 3), window=0), "window must be a number in [1, inf]")
