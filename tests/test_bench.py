"""The benches run, check before they time, and count what they say they count."""

import json

import pytest
import torch

from bench import cost, decode, measure, quantizer
from minar import fast, generate
from minar.plan import raster, region_groups

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(decode.SHAPES, "tiny", (32, 1, 2, 24))
    monkeypatch.setattr(decode, "NAIVE", {("tiny", 1)})
    monkeypatch.setattr(decode, "read_bandwidth", lambda device: 1e10)


def test_decode_prints_a_table_and_writes_json(tiny, tmp_path):
    text = decode.run(CPU, repeats=1, path=tmp_path / "x" / "decode.json", cases=[("tiny", 1)])
    said = json.loads((tmp_path / "x" / "decode.json").read_text())
    assert [row["way"] for row in said["rows"]] == ["naive", "cached", "fast", "cached", "fast", "cached", "fast"]
    assert said["device"].startswith("CPU") and said["torch"] == torch.__version__
    assert said["rows"][0]["naive / it"] == 1 and all(row["s"] > 0 and row["x floor"] > 0 for row in said["rows"])
    assert "tiny raster" in text and "16 regions" in text


def test_decode_refuses_to_time_other_tokens(tiny, monkeypatch):
    wrong = lambda *args, **knobs: (generate(*args, **knobs) + 1) % 24  # noqa: E731
    monkeypatch.setattr(fast, "generate", wrong)
    with pytest.raises(AssertionError, match="fast draws other tokens"):
        decode.run(CPU, repeats=1, cases=[("tiny", 1)])


def test_the_memory_floor_counts_weights_and_live_slots(tiny):
    model = decode.build("tiny", CPU)
    weights = sum(p.numel() for p in (*model.trunk.parameters(), *model.head.parameters())) * 4
    slot = 2 * 1 * 32 * 4 * 2  # keys and values, one layer, width 32, four bytes, with and without the condition
    read, held = decode.memory_floor(model, 3, raster(16, 16))
    assert read == 256 * weights + 3 * slot * (256 * 257 // 2)
    assert held == sum(p.numel() for p in model.parameters()) * 4 + 3 * slot * 256 + 2 * 3 * 24 * 4
    fewer, _ = decode.memory_floor(model, 3, region_groups(16, 16, 2))
    assert fewer < read / 3


def test_paired_takes_the_median_and_turns():
    calls = []
    seconds = measure.paired({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, repeats=3)
    assert calls == list("abababab") and seconds.keys() == {"a", "b"} and measure.peak_bytes(lambda: None, CPU) is None


def test_cost_and_quantizer_run():
    assert "slope" in cost.run(CPU, repeats=1, sides=(2, 4))
    text = quantizer.run(CPU, repeats=1, cases=[(64, 4, 32)])
    assert "100.00" in text and "training step" in text
