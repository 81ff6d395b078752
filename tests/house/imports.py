"""What imports what, read from the source: imports at any depth, for types alone too, and names in strings."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@functools.cache
def modules(package: str = "pgdpo", root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of every module of a package that lies in `root`."""
    found = {}
    for file in sorted((root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(module: str, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that one of them names."""
    return {name for name in _named(module, known) if name in known and name != module}


def _named(module: str, known: dict[str, Path]) -> Iterator[str]:
    file = known[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in known else base for name in inner)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and re.fullmatch(r"pgdpo[\w.]+:\w+", str(node.value)):
            yield node.value.partition(":")[0]
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            start = re.fullmatch(
                r"(pgdpo[\w.]*)\.", str(node.values[0].value)
            )  # f"pgdpo.models.{name}": any there
            yield from (name for name in known if start and name.rpartition(".")[0] == start[1])


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that come back to each other by imports."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        seen, waiting = set(), list(arrows[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += arrows[name]
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in seen if name in reached[other]))
        for name, seen in reached.items()
        if name in seen
    }
    return [list(group) for group in sorted(groups)]
