"""A submission as the grader sees it: functions and objects that answer from a process of their own.

The laws stay here, in the grader's process. So a submission may patch whatever it likes on its side, or leave with exit
code 0: only right numbers, in time, get points.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

import minar
from homework import wire
from homework.rules import Rules
from minar import NextStepAR, Plan

HERE, PACKAGE = Path(__file__).parent, Path(minar.__file__).parent
ERRORS = {e.__name__: e for e in (NotImplementedError, ValueError, TypeError, IndexError, KeyError, AttributeError)}
ERRORS |= {e.__name__: e for e in (AssertionError, RuntimeError, ImportError, PermissionError, RecursionError)}


class Gone(Exception):
    """The submission's process ended, or was ended because time was up."""


class Student:
    """One submission. path: a .py file; rules: what it may import; limit: seconds for loading it, and for each task.

    Use as a context manager, and do each task inside `task()`. A process that was lost is started anew for the next.
    """

    def __init__(self, path: Path, rules: Rules, limit: float):
        self.path, self.rules, self.limit = path, rules, limit
        self.process: subprocess.Popen | None = None
        self.late = False
        self.models: list[NextStepAR] = []  # those that the process has: a model is sent once
        self.broken: Exception | None = None  # why the file cannot be loaded, once that is known

    def __enter__(self) -> "Student":
        self.folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()
        self.folder.cleanup()

    @contextmanager
    def task(self) -> Iterator[None]:
        """Time runs for what is done inside."""
        if self.process is None:
            self.start()
        with self._clock():
            yield

    def start(self) -> None:
        """Start the process and load the file. A file that cannot be loaded is not tried twice."""
        if self.broken is not None:
            raise self.broken
        modules = [*self.rules.hidden_modules, "homework", "tests"]
        folders = [HERE / "source", HERE.parent / "tests", *([] if self.rules.minar else [PACKAGE])]
        package = str(PACKAGE.parent) if self.rules.minar else ""
        options = {"package": package, "hidden_modules": modules, "hidden_folders": [str(f) for f in folders]}
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-s", str(HERE / "worker.py"), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.name,
            env={k: v for k, v in os.environ.items() if not k.startswith("MINAR")} | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            self._receive()  # "ready": torch is imported, which is not the student's time
            with self._clock():
                self.ask("load", str(self.path.resolve()))
        except Exception as error:
            self.broken = type(error)(f"the file cannot be loaded: {error}")
            self.stop()
            raise self.broken from None

    def stop(self) -> None:
        """End the process, and what it started."""
        if self.process is None:
            return
        self.process.kill()
        if hasattr(os, "killpg"):  # not on Windows
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None
        self.models = []

    @contextmanager
    def _clock(self) -> Iterator[None]:
        self.late = False
        timer = threading.Timer(self.limit, self._time_is_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _time_is_up(self) -> None:
        self.late, process = True, self.process
        if process is not None:
            process.kill()  # reading from it ends at once

    def ask(self, *request: Any) -> Any:
        """One request and its answer. An error of the student's comes back as the same built-in error."""
        if self.process is None:
            raise Gone("the process of the submission is gone")
        try:
            wire.send(self.process.stdin, list(request))
        except OSError:
            self._lost()
        answer = self._receive()
        if not isinstance(answer, dict) or not ({"value"} == set(answer) or {"error", "text"} == set(answer)):
            raise Gone("the process of the submission speaks another language")
        if "error" in answer:
            kind = next((ERRORS[name] for name in answer["error"] if name in ERRORS), RuntimeError)
            named = f"{answer['error'][0]}: " if kind.__name__ != answer["error"][0] else ""
            raise kind(named + str(answer["text"]))
        return answer["value"]

    def _receive(self) -> Any:
        try:
            return wire.receive(self.process.stdout)
        except (EOFError, UnpicklingError, RuntimeError):
            self._lost()

    def _lost(self) -> None:
        late, process = self.late, self.process
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)  # its pipe is closed before it is gone, and the exit code says how it went
        self.stop()
        if late:
            raise Gone(f"not done after {self.limit:g} s: an endless loop?")
        raise Gone(f"the process of the submission ended by itself, exit code {process.returncode}")

    def function(self, name: str) -> Callable:
        """The student's function: tensors, numbers, slices, plans and models in; tensors, numbers and plans out."""
        return lambda *args: _received(self.ask("call", name, [self.sent(arg) for arg in args]))

    def with_gradients(self, name: str) -> Callable:
        """The student's function of float tensors, through which gradients pass."""
        return lambda *inputs: _Graph.apply(self, name, *inputs)

    def maker(self, name: str) -> Callable:
        """The student's class: calling it makes an object there and a stand-in here."""
        return lambda *args: StandIn(self, self.ask("make", name, [self.sent(arg) for arg in args]))

    def sent(self, value: Any) -> Any:
        """A value as the wire takes it; `built` in worker.py is the way back."""
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, slice):
            return {"slice": [value.start, value.stop]}
        if isinstance(value, Plan):
            return {"plan": [value.pos, list(value.sizes)]}
        if isinstance(value, NextStepAR):
            return {"model": self._model(value)}
        return list(value) if isinstance(value, tuple) else value

    def _model(self, model: NextStepAR) -> list:
        """Its number, and if the process does not have it yet what it is made of. Weights must not change later."""
        for number, known in enumerate(self.models):
            if known is model:
                return [number]
        self.models.append(model)
        return [len(self.models) - 1, _recipe(model)]


class StandIn:
    """A cache that lives in the submission's process."""

    def __init__(self, student: Student, number: int):
        self.student, self.number = student, number

    @property
    def n(self) -> int:
        return self.student.ask("get", self.number, "n")

    @n.setter
    def n(self, value: int) -> None:
        self.student.ask("set", self.number, "n", value)

    def put(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self._do("put", layer, k, v)
        return keys, values

    def advance(self, n_new: int) -> None:
        self._do("advance", n_new)

    def rollback(self, k: int) -> int:
        return self._do("rollback", k)

    def _do(self, method: str, *args: Any) -> Any:
        return self.student.ask("do", self.number, method, [self.student.sent(arg) for arg in args])


class _Graph(torch.autograd.Function):
    """A call whose graph stays with the submission; gradients are asked for there."""

    @staticmethod
    def forward(ctx, student: Student, name: str, *inputs: Tensor):
        ctx.student = student
        ctx.number, *outputs = student.ask("forward", name, [x.detach() for x in inputs])
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *gradients):
        return (None, None, *ctx.student.ask("backward", ctx.number, list(gradients)))


def _recipe(model: NextStepAR) -> dict:
    trunk = {name: getattr(model.trunk, name) for name in ("width", "n_layers", "n_heads", "hidden")}
    state = {name: x.detach() for name, x in model.state_dict().items()}
    rest = {"vocab": model.head.vocab, "n_classes": model.cond.n_classes, "grid": list(model.grid), "state": state}
    return trunk | rest


def _received(value: Any) -> Any:
    if isinstance(value, dict):
        pos, sizes = value["plan"]
        return Plan(pos, tuple(sizes))
    return tuple(value) if isinstance(value, list) else value
