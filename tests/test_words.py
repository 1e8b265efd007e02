"""Captions as conditions: words in, pictures out."""

import pytest
import torch
from torch import nn

from minar import AnyOrderAR, CategoricalHead, MaskedAR, NextStepAR, TextPrefix, Transformer, generate
from minar.lab import data
from minar.lab.train import fit
from minar.lab.words import Words, split
from minar.plan import rows


def test_words_of_captions():
    words = Words(["a red Apple", "a green apple, sliced", "red-hot!"], 4)
    assert words.words == ["a", "apple", "red", "green"] and len(words) == 4
    coded = words.encode(["green apple pie", "", "a a a a a"], 3)
    assert coded.tolist() == [[3, 1, 4], [4, 4, 4], [0, 0, 0]]
    assert words.decode(coded) == ["green apple", "", "a a a"]
    with pytest.raises(ValueError, match="hold no word"):
        Words(["", "?!"], 3)


def test_words_of_the_emoji():
    emoji = data.emoji()
    words = Words(emoji.captions, 300)
    coded = words.encode(emoji.captions, 4)
    assert coded.shape == (len(emoji.captions), 4) and int(coded.max()) == len(words) == 300
    assert {"face", "with", "red", "cat"} <= set(words.words)
    assert "".join(split("Café 24!")) == "café24"


@pytest.mark.parametrize("family", [NextStepAR, AnyOrderAR, MaskedAR])
def test_a_model_learns_what_words_mean(family):
    """The first word says which token the upper half holds, the second which the lower half holds."""
    colours = ["red", "green", "blue"]
    captions = [f"{a} over {b}" for a in colours for b in colours] * 4
    words = Words(captions, 8)
    cond = words.encode(captions, 3)
    number = {word: i for i, word in enumerate(colours)}
    tokens = torch.tensor([[number[c.split()[0]]] * 2 + [number[c.split()[2]]] * 2 for c in captions])
    torch.manual_seed(0)
    trunk, text = Transformer(32, 2, 2, hidden=32), TextPrefix(len(words), 3, 32)
    model, plan = family(trunk, nn.Embedding(3, 32), text, CategoricalHead(32, 3), (2, 2)), rows(2, 2, 2)
    fit(model, (tokens, cond), 150, 36, lr=1e-2, device="cpu", progress=False, plan=plan)
    drawn = generate(model, words.encode(["blue over red", "green over green"], 3), plan, cfg=1.5, temperature=0)
    assert drawn.tolist() == [[2, 2, 0, 0], [1, 1, 1, 1]]
