"""What a submission may import and use, read off its text before it runs; and whether it is the reference itself."""

import ast
from dataclasses import dataclass
from pathlib import Path

PLAIN = {"__future__", "abc", "collections", "dataclasses", "functools", "itertools", "math", "operator", "typing"}
FORBIDDEN_NAMES = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"}
TALL = 40  # nodes of a syntax tree: shorter functions may be alike by chance


@dataclass(frozen=True)
class Rules:
    """minar: may the package be used? hidden_modules: what must not be imported even so."""

    minar: bool
    hidden_modules: tuple[str, ...]

    @property
    def allowed(self) -> set[str]:
        return PLAIN | {"torch", "numpy"} | ({"minar"} if self.minar else set())


FROM_SCRATCH = Rules(minar=False, hidden_modules=("minar", "vector_quantize_pytorch", "transformers"))
DELTA = Rules(minar=True, hidden_modules=("minar.laws", "minar.model_laws"))


def broken(path: Path, rules: Rules) -> str | None:
    """The first rule that a submission breaks, in words, or None. path: a .py file; adapters.py: with its folder."""
    files, own = [path], set()
    if path.name == "adapters.py":
        files = sorted(path.parent.rglob("*.py"))
        own = {child.stem for child in path.parent.iterdir()}
    for file in files:
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError) as error:
            return f"{file.name} is not Python: {error}"
        for node in ast.walk(tree):
            found = _offence(node, rules, rules.allowed | own)
            if found:
                return f"{file.name}, line {node.lineno}: {found}"
    return None


def _offence(node: ast.AST, rules: Rules, allowed: set[str]) -> str | None:
    if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
        return f"{node.id} is not for homework"
    for name in _imported(node):
        hidden = any((name + ".").startswith(module + ".") for module in rules.hidden_modules)
        if hidden or name.split(".")[0] not in allowed:
            return f"imports {name}, allowed are {', '.join(sorted(rules.allowed - PLAIN))} and the like of math"
    return None


def _imported(node: ast.AST) -> list[str]:
    """All names that an import may load: `from minar import laws` loads minar.laws."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def copied(path: Path, reference: str) -> list[str]:
    """The functions and classes that are the reference's own, but for comments, docstrings and constants."""
    try:
        mine, theirs = _trees(path.read_text(encoding="utf-8")), _trees(reference)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    return [name for name, tree in mine.items() if theirs.get(name) == tree]


def _trees(text: str) -> dict[str, str]:
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for part in ast.walk(node):
                if isinstance(part, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(part) is not None:
                    part.body = part.body[1:]
                if isinstance(part, ast.Constant):
                    part.value = None  # the reference of another course differs in these only
            if sum(1 for _ in ast.walk(node)) > TALL:
                found[node.name] = ast.dump(node)
    return found
