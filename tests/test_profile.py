"""Profiles, claims, exercises and devices: what they print, and what they refuse."""

import pytest
import torch

from minar.lab.profile import claim, device, exercise, pick, profile


@pytest.fixture(params=["smoke", "lab", "full"])
def name(request, monkeypatch):
    monkeypatch.setenv("MINAR_PROFILE", request.param)
    return request.param


def test_pick_follows_the_profile(name):
    assert profile() == name
    assert pick(smoke=1, lab=2, full=3) == {"smoke": 1, "lab": 2, "full": 3}[name]


def test_lab_falls_back_to_smoke(name):
    assert pick(smoke=1, full=3) == (3 if name == "full" else 1)


def test_lab_is_the_default_and_other_words_are_refused(monkeypatch):
    monkeypatch.delenv("MINAR_PROFILE")
    assert profile() == "lab"
    monkeypatch.setenv("MINAR_PROFILE", "Full")
    with pytest.raises(ValueError, match=r"'Full'.*smoke, lab or full"):
        profile()


def test_claim_prints_or_raises(name, capsys):
    claim("one is one", torch.tensor(True))
    assert capsys.readouterr().out == "claim: one is one\n"
    with pytest.raises(AssertionError, match="claim failed: one is two"):
        claim("one is two", 1 == 2)


def test_claim_is_judged_only_where_it_can_be_true(name, capsys):
    if name == "full":
        with pytest.raises(AssertionError):
            claim("it learns", False, when="full")
    else:
        claim("it learns", False, when="full")
        assert capsys.readouterr().out == "claim (judged in full): it learns\n"


def test_claim_refuses_an_unknown_profile():
    with pytest.raises(ValueError, match="'gpu'"):
        claim("it learns", True, when="gpu")


def check_double(f, x):
    assert f(x) == 2 * x, "f(x) must be twice x"


def stub(x):
    raise NotImplementedError


def test_exercise(capsys, monkeypatch):
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
    exercise(check_double, stub, 3)
    exercise(check_double, lambda x: x + x, 3)
    assert capsys.readouterr().out == "to do\nok\n"
    with pytest.raises(AssertionError, match="twice x"):
        exercise(check_double, lambda x: x * x, 3)


def test_an_empty_answer_gets_no_points(monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(NotImplementedError):
        exercise(check_double, stub, 3)


def test_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device() == device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(RuntimeError, match=f"'{name}' was asked for"):
            device(name)
    with pytest.raises(ValueError, match="'gpu'"):
        device("gpu")


def test_the_best_device_comes_first(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device("cuda")
