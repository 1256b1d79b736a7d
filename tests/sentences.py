"""The English sentences of the program, as templates, found in its source.

Every text of a module that reads like words is a sentence that a run may tell, except where `is_told` says
otherwise: what only logs, programmers or command lines see.
"""

import ast
import builtins
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GAP = "\0"
_WORD = re.compile(r"(?<![^\s(])[a-z]{2,}(?![^\s).,;:?])")
_LOGS = {"debug", "info", "warning", "error", "exception", "log"}


def _join(parts: list[list[str]]) -> list[str]:
    return ["".join(choice) for choice in itertools.product(*parts)]


def variants(node: ast.expr) -> list[str]:
    """Return what an expression may read, with a gap for each value that is not written there."""
    match node:
        case ast.Constant(str(text)):
            return [text]
        case ast.JoinedStr(values):
            return _join([variants(value) for value in values])
        case ast.FormattedValue(ast.IfExp() as inner):
            return variants(inner)
        case ast.IfExp(_, one, other):
            return [*variants(one), *variants(other)]
        case ast.BinOp(left, ast.Add(), right):
            return _join([variants(left), variants(right)])
    return [GAP]


def template(text: str) -> str:
    """Return a text with numbered placeholders in its gaps, as a language file writes it."""
    first, *rest = text.replace("{", "{{").replace("}", "}}").split(GAP)
    return first + "".join(f"{{x{k}}}{part}" for k, part in enumerate(rest, start=1))


def _is_words(text: str) -> bool:
    """Whether a text has a word, and a space that parts it from something else."""
    return " " in text.strip() and bool(_WORD.search(text))


class _Finder(ast.NodeVisitor):
    def __init__(self, untold: frozenset[str]) -> None:
        self.untold, self.used = untold, set()
        self.found: dict[str, int] = {}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._named(node.name, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._named(node.name, node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._named(node.targets[0].id if isinstance(node.targets[0], ast.Name) else "", node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._named(node.target.id if isinstance(node.target, ast.Name) else "", node)

    def _named(self, name: str, node: ast.AST) -> None:
        if name in self.untold:
            self.used.add(name)
        else:
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        call = node.exc
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and hasattr(builtins, call.func.id)
        ):
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _LOGS:
            return
        if f"{name}()" in self.untold:
            self.used.add(f"{name}()")
            return
        self.generic_visit(node)

    def _take(self, node: ast.expr) -> None:
        for text in variants(node):
            if template(text) in self.untold:
                self.used.add(template(text))
            elif _is_words(text.replace(GAP, "0")):
                self.found.setdefault(template(text), node.lineno)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._take(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._take(node)
        for value in node.values:
            if isinstance(value, ast.FormattedValue) and not isinstance(value.value, ast.IfExp):
                self.visit(value.value)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add) and any(text != GAP and text.strip(GAP) for text in variants(node)):
            self._take(node)
        else:
            self.generic_visit(node)


def sentences_in(module: str, untold: frozenset[str] = frozenset()) -> tuple[dict[str, int], set[str]]:
    """Return the sentences of a module with their lines, and which of the names `untold` it has."""
    finder = _Finder(untold)
    finder.visit(ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8")))
    return finder.found, finder.used
