"""Every place in pgdpo that refuses an input, found in its source, and which of them a command can reach."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgdpo.plugins import FAMILIES
from tests.house.imports import imported, modules, tree

COMMANDS = {  # what `prepare`, `train`, `evaluate` and `reference` call, and what reads their arguments
    "pgdpo.data.preparing.run",
    "pgdpo.training.trainer",
    "pgdpo.evaluation.run",
    "pgdpo.training.reference_errors",
    "pgdpo.files.writable",
    "pgdpo.checkpoints.runs",
    "pgdpo.config.read",
}
ERRORS = ("InputError", "MachineError")


@dataclass(frozen=True)
class Site:
    """One `raise` of an InputError: where it stands, and the text that it holds."""

    module: str  # without `pgdpo.`
    function: str  # its qualified name
    text: str  # the constant parts of the message, `{}` between them
    file: Path
    lines: range

    def __str__(self) -> str:
        return f"{self.module}:{self.function}: {self.text}"


@functools.cache
def reachable_sites() -> list[Site]:
    """Those in the modules that the commands import, however late."""
    return [site for module in sorted(_reachable()) for site in _sites(module)]


def _sites(module: str) -> Iterator[Site]:
    def walk(node: ast.AST, names: tuple[str, ...]) -> Iterator[Site]:
        for child in ast.iter_child_nodes(node):
            inner = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            if isinstance(child, ast.Raise) and _refuses(child.exc):
                lines = range(child.lineno, child.end_lineno + 1)
                short = module.removeprefix("pgdpo.")
                yield Site(short, ".".join(names), _text(child.exc), modules()[module], lines)
            yield from walk(child, (*names, child.name) if inner else names)

    return walk(tree(modules()[module]), ())


def _refuses(raised: ast.expr | None) -> bool:
    """InputError(...), a function that returns one, or an error that was caught and kept."""
    if isinstance(raised, ast.Call):
        return _last(raised.func) in _makers()
    return isinstance(raised, (ast.Name, ast.Attribute)) and not _last(raised)[0].isupper()


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@functools.cache
def _makers() -> set[str]:
    """Names of the errors, and of the functions whose annotation says that they return one."""
    functions = (
        node
        for module in modules()
        for node in ast.walk(tree(modules()[module]))
        if isinstance(node, ast.FunctionDef)
    )
    return {*ERRORS, *(node.name for node in functions if node.returns and _last(node.returns) in ERRORS)}


def _text(raised: ast.expr) -> str:
    """What stands in quotes; the expression itself where nothing does."""
    if not isinstance(raised, ast.Call):
        return ast.unparse(raised)
    parts = [_constant(part) for part in raised.args]
    return " ".join(parts) if any(re.search("[a-z]", part) for part in parts) else ast.unparse(raised)


def _constant(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_constant(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _constant(node.left) + _constant(node.right)
    return "{}"


@functools.cache
def _reachable() -> frozenset[str]:
    found_by_name = [module for module in modules() if module.startswith(f"pgdpo.{FAMILIES}.")]
    waiting = [*COMMANDS, *found_by_name]
    found: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imported(module, modules())
    return frozenset(found)
