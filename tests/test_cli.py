"""The command line: pictures come out, and mistakes get one clear line."""

import pytest
import torch
from PIL import Image

from minar.cli import main, pick_labels
from minar.lab import recipes
from minar.lab.data import FASHION_NAMES


def test_demo_draws_a_labelled_grid_and_an_animation(tmp_path, capsys):
    assert main(["demo", "--class", "bag", "--samples", "2", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "with and without a cache are equal" in said and "pictures.png" in said
    rows = [line.split() for line in said.splitlines() if "cache  " in line or "possible" in line]
    assert [row[-3:-1] for row in rows] == [
        ["64", "2,080"],
        ["64", "64"],
        ["19", "64"],
        ["16", "64"],
        ["8", "520"],
        ["6", "130"],
    ]
    assert Image.open(tmp_path / "pictures.png").size[0] > 100
    assert Image.open(tmp_path / "appearing.png").n_frames == 34  # the final picture, then after 0, 2, ... 64 runs


def test_sample_is_repeatable(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        assert main(["sample", "--class", "9", "--samples", "1", "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_train_then_sample(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", "digits", "--share", "0.005", "--device", "cpu", "--out", folder]) == 0
    assert main(["sample", "--models", folder, "--samples", "1", "--out", str(tmp_path / "x.png")]) == 0
    tokenizer, gpt, names = recipes.models(folder)
    assert names == tuple("0123456789") and gpt.grid == (4, 4) and tokenizer.encoder.factor == 2
    assert (
        main(["train", "digits", "--share", "0.005", "--device", "cpu", "--out", folder]) == 0
    )  # done: goes on at once


def test_train_the_pair_of_next_scale_then_sample(tmp_path, capsys):
    folder = str(tmp_path / "run")
    command = ["train", "digits", "--share", "0.005", "--device", "cpu", "--out", folder]
    assert main([*command, "--next-scale"]) == 0
    assert "30 tokens a picture" in capsys.readouterr().out
    assert main(["sample", "--models", folder, "--class", "3", "--samples", "2", "--out", str(tmp_path / "x.png")]) == 0
    tokenizer, model, _ = recipes.models(folder)
    assert tokenizer.quantizer.sides == model.quantizer.sides == (1, 2, 3, 4) and bool(tokenizer.quantizer.started)
    assert main(command) == 2 and "choose another --out for a gpt" in capsys.readouterr().err


def test_sides_of_a_pyramid():
    assert recipes.pyramid_sides(1, 1) == (1,) and recipes.pyramid_sides(7, 7) == (1, 2, 3, 4, 6, 7)
    assert recipes.pyramid_sides(16, 16) == (1, 2, 3, 4, 6, 8, 12, 16)
    with pytest.raises(ValueError, match="square pictures, these have 4 x 8 tokens"):
        recipes.pyramid_sides(4, 8)


@pytest.mark.parametrize(
    "args, message",
    [
        (["demo", "--class", "hat"], "class 'hat' fits 0 of"),
        (["demo", "--class", "sh"], "fits 2 of"),
        (["demo", "--cfg", "-1"], "cfg must be a number"),
        (["demo", "--samples", "0"], "samples must be at least 1"),
        (["sample", "--top-p", "2"], "top_p must be"),
        (["sample", "--models", "nowhere"], "holds no trained models"),
        (["train", "mnist"], "unknown data set 'mnist'"),
        (["train", "digits", "--share", "0"], "share must be above 0"),
        (["train", "folder:nowhere"], "nowhere"),
    ],
)
def test_mistakes_get_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith(f"minar {args[0]}: ")


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--class", "bag", "--samples", "1", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "minar demo: " in capsys.readouterr().err


def test_classes_by_name_number_and_all():
    assert pick_labels(None, FASHION_NAMES) == list(range(10))
    assert pick_labels("7", FASHION_NAMES) == [7] and pick_labels("sneaker", FASHION_NAMES) == [7]
    assert pick_labels("Shirt", FASHION_NAMES) == [6], "an exact name wins over T-shirt/top"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_fit_together(name):
    r = recipes.RECIPES[name]
    size = {"digits": 8}.get(name, 32)
    channels = 1 if name in ("digits", "fashion", "fashion-full") else 3
    tokenizer = r.tokenizer(channels)
    tokens = tokenizer.encode(torch.zeros(1, channels, size, size))
    grid = (size // tokenizer.encoder.factor,) * 2
    assert r.gpt(3, grid).logits(tokens[:, :-1], torch.tensor([0])).shape == (1, grid[0] * grid[1], r.vocab)
