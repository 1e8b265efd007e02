"""For students who write a package of their own: the bridge from it to the graded contracts.

Copy this file as `adapters.py` beside your package, in one folder, and hand in the folder:

    me/adapters.py
    me/mypackage/...

Fill in what your homework asks for and leave the rest. Each function is short: it calls your package. Weights go in and
numbers come out, so use the arguments you are given; `hw1.ipynb` and `hw2.ipynb` say what each one means. Your package
keeps the rules of the homework: hw1 does not import minar.
"""

# Homework 1


def encode(z, codebook):
    """z: (B, C, h, w), codebook: (V, C) -> tokens (B, N) long, in your course's order."""
    raise NotImplementedError("your turn")


def decode(tokens, codebook, size):
    """tokens: (B, N) long, codebook: (V, C), size: (h, w) -> (B, C, h, w)."""
    raise NotImplementedError("your turn")


def quantize(z, codebook):
    """z: (B, C, h, w), codebook: (V, C) -> codes (B, C, h, w), tokens (B, N), loss ().

    Gradients of codes and loss must reach z and codebook. If your codebook is a parameter of a module, hand this one
    over without copying it: `torch.func.functional_call(module, {"codebook": codebook}, (z,))`.
    """
    raise NotImplementedError("your turn")


def Cache(max_len):
    """An object with put(layer, k, v), advance(n_new) and n, which may be lowered."""
    raise NotImplementedError("your turn")


# Homework 2


def spiral(h, w):
    """Anything with pos, (N,) long, and sizes, a tuple: minar.Plan has both."""
    raise NotImplementedError("your turn")


def hilbert(side, n=1):
    """As spiral."""
    raise NotImplementedError("your turn")


def read(model, tokens, prefix, plan, slots):
    """model: a minar.NextStepAR; see there -> vectors (B, T, D), angles (T, hd / 2, 2)."""
    raise NotImplementedError("your turn")


def RollbackCache(max_len):
    """As Cache, in minar's layout, with rollback(k) -> number of slots forgotten."""
    raise NotImplementedError("your turn")
