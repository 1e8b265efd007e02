"""Checkpoints: what is saved comes back, whole or not at all, and no pickle is ever opened."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import minar
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
    MaskedAR,
    MultiScaleQuantizer,
    NextScaleAR,
    NextStepAR,
    TextPrefix,
    Transformer,
    VectorQuantizer,
)
from minar.lab import checkpoint
from minar.lab.judge import Judge
from minar.laws import wake
from minar.plan import rows, scales

PACKAGE = Path(minar.__file__).parent
TOKENS, LABEL = torch.randint(24, (2, 6), generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3])


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def encoder():
    return Encoder(3, 4, 8, (1, 2), 1)


def decoder():
    return Decoder(3, 4, 8, (1, 2), 1)


def pyramid():
    return MultiScaleQuantizer(24, 4, (1, 2, 3), beta=0.5, n_phi=2)


def follower(family):
    return family(Transformer(16, 1, 2, 24), nn.Embedding(24, 16), ClassLabel(5, 16), CategoricalHead(16, 24), (2, 3))


# Each class with arguments that are not the defaults, and something to compute with it.
MODELS = {
    "Transformer": (lambda: Transformer(16, 2, 2, hidden=24), lambda m: m(noise(2, 5, 16), "causal")),
    "GPT": (lambda: GPT(Transformer(16, 1, 2, 24), 24, 5, (2, 3)), lambda m: m.logits(TOKENS[:, :5], LABEL)),
    "CategoricalHead": (lambda: CategoricalHead(16, 12), lambda m: m.logits(noise(2, 3, 16))),
    "ClassLabel": (lambda: ClassLabel(5, 16), lambda m: m(LABEL)),
    "VectorQuantizer": (lambda: VectorQuantizer(24, 4, beta=0.5), lambda m: m(noise(2, 4, 3, 3)).loss),
    "CosineQuantizer": (lambda: CosineQuantizer(24, 4, beta=0.5), lambda m: m.decode(TOKENS, (2, 3))),
    "FSQ": (lambda: FSQ((3, 4, 2)), lambda m: m(noise(2, 3, 2, 2)).z),
    "Encoder": (encoder, lambda m: m(noise(2, 3, 8, 8))),
    "Decoder": (decoder, lambda m: m(noise(2, 4, 4, 4))),
    "VQVAE": (lambda: VQVAE(encoder(), decoder(), FSQ((3, 4, 2, 2))), lambda m: m.reconstruct(noise(2, 3, 8, 8))),
    "TextPrefix": (lambda: TextPrefix(7, 3, 16), lambda m: m(torch.tensor([[0, 8, 7], [1, 2, 3]]))),
    "NextStepAR": (lambda: follower(NextStepAR), lambda m: m.nll(TOKENS, LABEL, rows(2, 3, 3))),
    "AnyOrderAR": (lambda: follower(AnyOrderAR), lambda m: m.nll(TOKENS, LABEL, rows(2, 3, 3))),
    "MaskedAR": (lambda: follower(MaskedAR), lambda m: m.nll(TOKENS, LABEL, rows(2, 3, 3))),
    "MultiScaleQuantizer": (pyramid, lambda m: m(noise(2, 4, 3, 3)).loss),
    "NextScaleAR": (
        lambda: NextScaleAR(Transformer(16, 1, 2, 24), ClassLabel(5, 16), CategoricalHead(16, 24), pyramid()),
        lambda m: m.nll(torch.arange(28).view(2, 14) % 24, LABEL, scales((1, 2, 3))),
    ),
    "Judge": (lambda: Judge(8, 16, 4), lambda m: m.logits(noise(2, 1, 28, 28))),
}


def arguments(module):
    """Constructor arguments with their types, nested: (4, 4) is not [4, 4]."""
    names = checkpoint.spec(module)["args"]
    return {k: arguments(x) if isinstance(x := getattr(module, k), nn.Module) else (type(x), x) for k in names}


def test_every_public_class_is_in_the_table():
    assert set(checkpoint.PUBLIC) & set(checkpoint.CLASSES) <= {
        *MODELS,
        "ARModel",
    }  # it is what families have in common


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, tmp_path):
    make, compute = MODELS[name]
    model = wake(make())
    if "hits" in dict(model.named_buffers()):
        model.hits += 3
    back = checkpoint.load(checkpoint.save(tmp_path / "deep" / "model.safetensors", model))
    assert type(back) is type(model) and not back.training
    assert arguments(back) == arguments(model)
    assert back.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor) and back.state_dict()[key].dtype == tensor.dtype, key
    result = compute(model)
    assert torch.equal(compute(back), result)
    assert result.dim() == 0 or result.unique().numel() > 1, "a constant result would prove nothing"


def test_half_precision(tmp_path):
    make, compute = MODELS["GPT"]
    model = wake(make())
    whole = checkpoint.save(tmp_path / "whole.safetensors", model)
    half = checkpoint.save(tmp_path / "half.safetensors", model, torch.float16)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    assert all(p.dtype == torch.float32 for p in checkpoint.load(half).parameters())
    assert torch.equal(checkpoint.load(half).embed.weight, model.embed.weight.half().float())
    assert (compute(checkpoint.load(half)) - compute(model)).abs().max() < 0.02
    quantizer = checkpoint.load(checkpoint.save(tmp_path / "q.safetensors", VectorQuantizer(4, 2), torch.float16))
    assert quantizer.hits.dtype == torch.long and quantizer.started.dtype == torch.bool


@pytest.mark.parametrize("name", ["GPT", "NextScaleAR"])
def test_eight_bits(tmp_path, name):
    """Each number of a matrix is off by half a step at most, of 254 between the largest of its row and its negative."""
    model = wake(MODELS[name][0]())
    back = checkpoint.load(checkpoint.save(tmp_path / "model.safetensors", model, eight_bits=True))
    matrices = 0
    for key, value in model.state_dict().items():
        read = back.state_dict()[key]
        if key.endswith("weight") and value.dim() == 2:
            assert ((read - value).abs() <= 0.5001 * value.abs().amax(1, keepdim=True) / 127).all(), key
            matrices += 1
        else:
            assert torch.equal(read, value), key
    assert matrices > 5 and read.dtype == value.dtype


def test_eight_bits_are_a_quarter(tmp_path):
    model = Transformer(128, 2, 4)
    whole, small = (
        checkpoint.save(tmp_path / "whole", model),
        checkpoint.save(tmp_path / "small", model, eight_bits=True),
    )
    assert small.stat().st_size < 0.27 * whole.stat().st_size
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.zero_()
    again = checkpoint.load(checkpoint.save(tmp_path / "zero", model, eight_bits=True))
    assert not again.blocks[0].attn.qkv.weight.any(), "a row of zeros stays one"


def test_what_is_trained_further_does_not_change_the_file(tmp_path):
    path = checkpoint.save(tmp_path / "model.safetensors", FSQ((3, 4)))
    before = path.read_bytes()
    model = checkpoint.load(path)
    with torch.no_grad():
        model.hits += 1
    assert path.read_bytes() == before and not checkpoint.load(path).hits.any()


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module, times: tuple[int, ...] = (2,)):
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x):
        return self.inner(x) * self.times[0]


def test_a_class_of_your_own(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CLASSES", dict(checkpoint.CLASSES))
    model = Doubled(CategoricalHead(4, 3), (2, 5))
    with pytest.raises(TypeError, match="Doubled is not known to checkpoints"):
        checkpoint.save(tmp_path / "own.safetensors", model)
    assert checkpoint.register(Doubled) is Doubled
    back = checkpoint.load(checkpoint.save(tmp_path / "own.safetensors", wake(model)))
    assert back.times == (2, 5) and torch.equal(back(noise(2, 4)), model(noise(2, 4)))


KILLED_WHILE_SAVING = """
import os, signal, sys
from minar import FSQ
from minar.lab import checkpoint

os.{name} = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(sys.argv[1], FSQ((5, 5)))
"""


@pytest.mark.skipif(os.name == "nt", reason="needs kill -9")
@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_kill_while_saving_leaves_the_old_file(name, tmp_path):
    path = checkpoint.save(tmp_path / "model.safetensors", FSQ((3, 4)))
    before = path.read_bytes()
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING.format(name=name), str(path)], timeout=120)
    assert killed.returncode == -signal.SIGKILL and path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2, "it was killed before it wrote anything: this proves nothing"
    assert checkpoint.load(checkpoint.save(path, FSQ((5, 5)))).levels == (5, 5)
    assert list(tmp_path.iterdir()) == [path], "what the kill left behind must not stay"


# The source itself.

PLAIN = (
    "cache",
    "condition",
    "cross_entropy",
    "gpt",
    "heads",
    "quantizers",
    "resize",
    "sampling",
    "tf32",
    "transformer",
    "vqvae",
)
PLANNED = (
    "plan",
    "model",
    "next_step",
    "multi_scale",
    "next_scale",
    "any_order",
    "masked",
    "generate",
)  # from lesson 07 on
CORE = (*PLAIN, *PLANNED)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def names(node):
    """Dotted names below a node: torch.load, x.to."""
    return {ast.unparse(n) for n in ast.walk(node) if isinstance(n, ast.Attribute | ast.Name)}


def imports(node):
    found = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Import):
            found |= {alias.name for alias in n.names}
        elif isinstance(n, ast.ImportFrom):
            assert not n.level, "a relative import hides from this test"
            found |= {n.module} | {f"{n.module}.{alias.name}" for alias in n.names}
    return found


def test_nothing_is_unpickled():
    """np.load refuses pickles by itself; torch.load of official files is for minar.ports, with weights_only."""
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        source = tree(path)
        modules = {name.split(".")[0] for name in imports(source)}
        assert not modules & {"pickle", "dill", "joblib", "shelve", "cloudpickle", "marshal"}, path
        assert "allow_pickle" not in path.read_text(encoding="utf-8"), path
        calls = [n for n in ast.walk(source) if isinstance(n, ast.Call) and ast.unparse(n.func) == "torch.load"]
        ported = "ports" in path.relative_to(PACKAGE).parts
        assert "torch.load" not in names(source) or ported, f"{path} opens pickles"
        assert all(any(k.arg == "weights_only" and k.value.value is True for k in c.keywords) for c in calls), path
        seen += 1
    assert seen > 15


@pytest.mark.parametrize("name", [*CORE, "checks", "laws", "model_laws"])
def test_the_core_stands_alone(name):
    outside = {m for m in imports(tree(PACKAGE / f"{name}.py")) if m.split(".")[0] == "minar"}
    allowed = {f"minar.{other}" for other in ((*PLAIN, "checks") if name in PLAIN else (*CORE, "checks"))}
    assert {".".join(m.split(".")[:2]) for m in outside} <= allowed
    assert name != "laws" or not outside, "the laws judge anybody's code, so they know no class of the package"


# Each makes the host wait for the device, or ties a model to one. checks.py looks at values, but on the CPU alone
# unless it is told to wait, so it is not in CORE.
WAITS = ("item", "cuda", "to", "cpu", "tolist", "numpy", "nonzero")
DOORS = {
    "generate.generate": {"to"},
    "generate.fill_prompt": {"to"},
    "gpt.generate": {"to"},  # labels may come from anywhere; once per image, not per token
    "plan.to": {"to"},
    "quantizers.draw_rows": {"to"},  # a CPU generator draws the same rows on every device; at restarts only
    "resize.__init__": {"to"},  # matrices are made on the CPU
    "resize._apply": {"to"},  # and go where the module goes
    "quantizers.restart": {"int"},  # how many codes moved, once per hundred steps
}


def functions(node):
    for n in ast.walk(node):
        if isinstance(n, ast.FunctionDef):
            yield n


@pytest.mark.parametrize("name", CORE)
def test_no_device_in_the_core(name):
    for function in functions(tree(PACKAGE / f"{name}.py")):
        calls = {n.func for n in ast.walk(function) if isinstance(n, ast.Call)}
        used = {f.attr for f in calls if isinstance(f, ast.Attribute) and f.attr in WAITS}
        used |= {f.id for f in calls if isinstance(f, ast.Name) and f.id in ("int", "float", "bool")}
        assert used == DOORS.get(f"{name}.{function.name}", set()), f"{name}.{function.name}"
