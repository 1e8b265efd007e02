"""The process of one submission: it loads the student's file and answers the grader's calls, numbers in, numbers out.

Started by remote.py as a script. It judges nothing: whatever a submission does to this process, the laws run in
another one, on the numbers that it sends. What it guards is the answer: see `guard`.
"""

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
import wire  # beside this file

REFUSED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.kill", "subprocess.Popen", "socket.connect")
REFUSED += ("os.remove", "os.rename", "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.chmod", "ctypes.dlopen")


def main() -> None:
    options = json.loads(sys.argv[1])
    requests, replies = private_pipes()
    torch.set_num_threads(1)
    sys.path.remove(str(Path(__file__).parent))
    if options["package"]:
        sys.path.append(options["package"])  # where minar is, if it is not installed
        importlib.import_module("minar.papers.par")
    guard(options["hidden_modules"], options["hidden_folders"])
    submission = Submission()
    wire.send(replies, "ready")
    while True:
        try:
            request = wire.receive(requests)
        except EOFError:
            return
        reply(replies, submission, request)


def private_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The grader's pipes under numbers of their own: what the submission prints or reads goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return requests, replies


def guard(modules: list[str], folders: list[str]) -> None:
    """From now on: no import of these modules, no look into these folders, no writing, no other process, no network.

    An audit hook cannot be taken out again from Python.
    """
    roots = [os.path.realpath(folder) for folder in folders]

    def refuse(event: str, args: tuple) -> None:
        if event == "import" and any(args[0] == name or args[0].startswith(name + ".") for name in modules):
            raise ImportError(f"this homework must not import {args[0]}")
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            path, mode, flags = os.fsdecode(args[0]), args[1] or "", args[2] or 0
            if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR):
                raise PermissionError("a submission must not write files")
            if any((os.path.realpath(path) + os.sep).startswith(root + os.sep) for root in roots):
                raise PermissionError("a submission must not read the grader's files")
        if event in REFUSED:
            raise PermissionError(f"a submission must not call {event}")

    sys.addaudithook(refuse)


def reply(pipe: BinaryIO, submission: "Submission", request: list) -> None:
    """Answer one request: the value, or the error as the names of its classes and its text."""
    try:
        answer = {"value": plain(submission.answer(*request))}
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: the process goes on
        answer = {"error": [kind.__name__ for kind in type(error).__mro__], "text": str(error)[:500]}
    try:
        wire.send(pipe, answer)
    except Exception as error:
        wire.send(pipe, {"error": ["TypeError"], "text": f"the answer cannot be sent: {error}"[:500]})


class Submission:
    """The student's module, the objects that it made, and the graphs of calls whose gradients may be asked for."""

    def __init__(self):
        self.module: Any = None
        self.objects: dict[int, Any] = {}
        self.graphs: dict[int, tuple[list, list]] = {}
        self.models: dict[int, Any] = {}

    def answer(self, what: str, *args: Any) -> Any:
        handlers = {"load": self.load, "call": self.call, "make": self.make, "do": self.do, "get": self.get}
        return (handlers | {"set": self.set, "forward": self.forward, "backward": self.backward})[what](*args)

    def load(self, path: str) -> None:
        """Run the file. One of a folder may import what stands beside it."""
        if Path(path).name == "adapters.py":
            sys.path.insert(0, str(Path(path).parent))
        spec = importlib.util.spec_from_file_location("submission", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["submission"] = module  # dataclasses look themselves up there
        spec.loader.exec_module(module)
        self.module = module

    def call(self, name: str, args: list) -> Any:
        return getattr(self.module, name)(*map(self.built, args))

    def make(self, name: str, args: list) -> int:
        """A new object of the student's; it is known by a number."""
        self.objects[len(self.objects)] = self.call(name, args)
        return len(self.objects) - 1

    def do(self, number: int, method: str, args: list) -> Any:
        return getattr(self.objects[number], method)(*map(self.built, args))

    def get(self, number: int, name: str) -> Any:
        return getattr(self.objects[number], name)

    def set(self, number: int, name: str, value: Any) -> None:
        setattr(self.objects[number], name, value)

    def forward(self, name: str, inputs: list) -> list:
        """Call, and keep the graph: [number of the graph, outputs ...]."""
        inputs = [x.requires_grad_() for x in inputs]
        with torch.enable_grad():
            outputs = list(getattr(self.module, name)(*inputs))
        self.graphs[len(self.graphs)] = inputs, outputs
        return [len(self.graphs) - 1, *outputs]

    def backward(self, number: int, gradients: list) -> list:
        """The gradients of the inputs, None where an output does not depend on one."""
        inputs, outputs = self.graphs[number]
        pairs = [(y, g) for y, g in zip(outputs, gradients) if g is not None and y.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        outputs, gradients = zip(*pairs)
        return list(torch.autograd.grad(outputs, inputs, gradients, retain_graph=True, allow_unused=True))

    def built(self, arg: Any) -> Any:
        """A value of the wire as what a student expects: slices, plans and models come as dicts with one key."""
        if not isinstance(arg, dict):
            return tuple(arg) if isinstance(arg, list) else arg
        ((kind, parts),) = arg.items()
        if kind == "slice":
            return slice(*parts)
        if kind == "plan":
            from minar import Plan

            return Plan(parts[0], tuple(parts[1]))
        number, *recipe = parts
        if recipe:
            self.models[number] = _model(**recipe[0])
        return self.models[number]


def _model(width: int, n_layers: int, n_heads: int, hidden: int, vocab: int, n_classes: int, grid: list, state: dict):
    """A NextStepAR of the course with the grader's weights."""
    from minar import CategoricalHead, ClassLabel, NextStepAR, Transformer

    trunk, embed = Transformer(width, n_layers, n_heads, hidden), torch.nn.Embedding(vocab, width)
    model = NextStepAR(trunk, embed, ClassLabel(n_classes, width), CategoricalHead(width, vocab), tuple(grid))
    model.load_state_dict(state)
    return model.eval()


def plain(value: Any) -> Any:
    """What a student returned, as values that may pass: tensors without their graph, plans as a dict."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if hasattr(value, "pos") and hasattr(value, "sizes"):
        return {"plan": [plain(value.pos), [int(n) for n in value.sizes]]}
    if isinstance(value, (list, tuple)):
        return [plain(x) for x in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} was returned: tensors, numbers and plans can be judged")


if __name__ == "__main__":
    main()
