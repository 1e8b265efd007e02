"""minar sample with official files: tiny ones, under their official names."""

import pytest
import torch
from PIL import Image
from probes import fill, gpt_shapes, vq_shapes
from test_probes_var import gpt_shapes as var_shapes
from test_probes_var import vae_shapes

from minar.cli import main
from minar.lab import official


def files(folder, tokenizer, weights):
    """Two official files of these shapes, nested as the training scripts of each nest them."""
    torch.save(fill(tokenizer), folder / "vq.pt")
    torch.save({"model": fill(weights)}, folder / "gpt.pt")
    return ["--tokenizer", str(folder / "vq.pt"), "--weights", str(folder / "gpt.pt"), "--samples", "1"]


def test_llamagen(tmp_path):
    given = files(tmp_path, vq_shapes((1, 1), 32, 48), gpt_shapes(64, 1, 64, 48, 10))
    out = tmp_path / "drawn.png"
    assert main(["sample", "--official", "llamagen", *given, "--side", "4", "--class", "3", "--out", str(out)]) == 0
    assert min(Image.open(out).size) >= 8


def test_var(tmp_path, monkeypatch):
    monkeypatch.setitem(official.SIDES, 30, (1, 2, 3, 4))
    given = files(tmp_path, vae_shapes(), var_shapes())
    out = tmp_path / "drawn.png"
    assert main(["sample", "--official", "var", *given, "--heads", "2", "--class", "3", "--out", str(out)]) == 0
    assert min(Image.open(out).size) >= 64


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "--official needs --tokenizer FILE, --weights FILE and --class NUMBER"),
        (["--tokenizer", "a.pt", "--weights", "b.pt", "--class", "1"], "b.pt: no such file"),
    ],
)
def test_mistakes(more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--official", "var", *more]) == 2
    assert message in capsys.readouterr().err


def test_files_of_the_other_model_and_classes_that_are_not_there(tmp_path, capsys):
    given = files(tmp_path, vq_shapes((1, 1), 32, 48), gpt_shapes(64, 1, 64, 48, 10))
    assert main(["sample", "--official", "var", *given, "--class", "1"]) == 2
    assert "pos_1LC" in capsys.readouterr().err
    assert main(["sample", "--official", "llamagen", *given, "--class", "10", "--side", "4"]) == 2
    assert "class '10' fits 0 of" in capsys.readouterr().err


def test_a_pyramid_that_is_not_known(tmp_path, capsys):
    given = files(tmp_path, vae_shapes(), var_shapes())
    assert main(["sample", "--official", "var", *given, "--class", "1"]) == 2
    assert "the weights are for 30 tokens, known are 680" in capsys.readouterr().err
