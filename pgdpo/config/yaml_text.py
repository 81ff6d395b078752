"""A YAML text and the places of its keys; what PyYAML lets pass (keys given twice, aliases that explode) is refused."""

from __future__ import annotations

from pathlib import Path

import yaml

from pgdpo.files.bounded import read_text
from pgdpo.messages.problems import Problem, shown

MOST_NODES = 100_000  # of a document with its aliases written out
MOST_BYTES = 1 << 22  # of a document: ours have 5 kB
FORM = "YAML: one `key: value` a line, sections indented by spaces"


def read_yaml(file: Path, keys: list[str]) -> tuple[dict, dict[tuple, int], list[Problem]]:
    """(a file's mapping, the line of every key by its path, what is wrong with the text).

    `keys`: what the mapping may hold, for the message. The mapping is empty where the text is no YAML mapping.
    """
    try:
        text = read_text(file, MOST_BYTES)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[tuple, int] = {}
        problems = _too_large(file, root) or _walk(file, root, (), lines)
        raw = yaml.safe_load(text) if not problems or lines else None
    except yaml.YAMLError as error:
        return {}, {}, [_not_yaml(file, text, error)]
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        what = f"cannot be read as YAML: {reason}"
        return {}, {}, [Problem(str(file), what, allowed=FORM, suggestion="name a configuration file")]
    if isinstance(raw, dict):
        return raw, lines, problems
    if not problems:
        kind = "nothing" if raw is None else type(raw).__name__
        problems = [
            Problem(
                str(file),
                f"holds {kind}, expected a mapping",
                value=shown(raw),
                allowed=f"a mapping with the keys {', '.join(keys)}",
                suggestion="start from one that ships, such as quickstart.yaml",
            )
        ]
    return {}, lines, problems


def _walk(file: Path, node: yaml.Node | None, path: tuple, lines: dict[tuple, int]) -> list[Problem]:
    """Fill in `lines`, of keys and of entries of lists; a Problem for each key that stands twice."""
    problems = []
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*path, key.value)
            line = key.start_mark.line + 1
            if place in lines:
                problems.append(_twice(file, place, lines[place], line))
            lines[place] = line
            problems += _walk(file, value, place, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            problems += _walk(file, value, (*path, index), lines)
    return problems


def _twice(file: Path, place: tuple, first: int, line: int) -> Problem:
    key = ".".join(map(str, place))
    return Problem(
        str(file),
        f"key `{key}` stands twice, here and on line {first}",
        key=key,
        value=place[-1],
        allowed="each key once in its section",
        suggestion="remove one of the two",
        line=line,
    )


def _too_large(file: Path, root: yaml.Node | None) -> list[Problem]:
    """Aliases that name themselves or multiply beyond reason."""
    try:
        size = _expanded(root, {})
    except RecursionError:
        size = None
    if size is not None and size <= MOST_NODES:
        return []
    what = "an alias that holds itself" if size is None else f"aliases that expand to {size} entries"
    mend = "write the values out instead of `&` and `*`"
    return [Problem(str(file), what, allowed=f"at most {MOST_NODES} entries", suggestion=mend)]


def _expanded(node: yaml.Node | None, sizes: dict[int, int | None]) -> int:
    """Nodes below `node` with aliases written out. Raises RecursionError for a cycle."""
    if id(node) in sizes:
        if sizes[id(node)] is None:
            raise RecursionError
        return sizes[id(node)]
    sizes[id(node)] = None
    children: list = []
    if isinstance(node, yaml.MappingNode):
        children = [each for pair in node.value for each in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(_expanded(child, sizes) for child in children)
    return sizes[id(node)]


def _not_yaml(file: Path, text: str, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else None
    found = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
    reason = getattr(error, "problem", None) or " ".join(str(error).split())
    if isinstance(error, yaml.constructor.ConstructorError):
        mend = "remove the tag that starts with `!`: plain values only"
    elif "\t" in text.split("\n")[mark.line if mark else 0]:
        mend = "indent with spaces, not tabs"
    else:
        mend = "look at this line and the one before it for a missing `:`, quote, bracket or space"
    return Problem(
        str(file),
        f"cannot be read as YAML: {reason}" + (f" at {shown(found)}" if found else ""),
        value=found,
        allowed=FORM,
        suggestion=mend,
        line=line,
    )
