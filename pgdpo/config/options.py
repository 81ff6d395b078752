"""The table of all configuration keys, from their sections: `configs/OPTIONS.md` is its output."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.markup import escape
from rich.table import Table

from pgdpo.config import Config
from pgdpo.config.section import section_of
from pgdpo.messages.errors import InputError

_BOUNDS = {
    Ge: ("≥", "ge"),
    Gt: (">", "gt"),
    Le: ("≤", "le"),
    Lt: ("<", "lt"),
    MinLen: ("entries ≥", "min_length"),
}


def markdown() -> str:
    """One table a section: key, what it takes, default, what it does."""
    parts = [
        "# Configuration keys",
        "",
        "Every key of a configuration. Any of them may be given on the command line as `section.key=value`. Written by",
        "`pgdpo options --markdown`.",
    ]
    for section, rows in _sections().items():
        parts += ["", f"## {section}", "", "| key | takes | default | |", "|---|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def keys() -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key that takes a value; of lists of sections as `key[].field`."""
    yield from _walk(Config, "")


def table(pattern: str | None = None) -> Table:
    """The keys that hold `pattern`. Raises InputError if there is none."""
    found = [(key, field) for key, field in keys() if pattern is None or pattern in key]
    if not found:
        raise InputError(f"no key holds {pattern!r}; `pgdpo options` lists all")
    shown = Table()
    for name in ("key", "takes", "default", ""):
        shown.add_column(name, overflow="fold")
    for key, field in found:
        cells = (key, _takes(field), _default(field), field.description or "")
        shown.add_row(*(escape(cell.replace("`", "").replace("*", "").replace("\\|", "|")) for cell in cells))
    return shown


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        nested, many = section_of(field.annotation)
        key = f"{prefix}{name}"
        if nested is None:
            yield key, field
            continue
        if many or field.default is None:
            yield key, field
        yield from _walk(nested, f"{key}{'[]' if many else ''}.")


def _sections() -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for key, field in keys():
        section = key.split(".")[0].removesuffix("[]") if "." in key else "the run"
        text = (field.description or "").replace("|", "\\|")
        row = f"| `{key}` | {_takes(field)} | {_default(field)} | {text} |"
        sections.setdefault(section, []).append(row)
    return sections


def _takes(field: FieldInfo) -> str:
    return ", ".join([_type(field.annotation), *_bounds(field.metadata)]).replace("|", "\\|")


def _bounds(constraints: Iterable) -> list[str]:
    return [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in constraints
        for kind, (sign, name) in _BOUNDS.items()
        if isinstance(constraint, kind)
    ]


def _type(annotation) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = [limit for each in arguments[1:] for limit in getattr(each, "metadata", [])]
        return _type(arguments[0]) + (f" ({', '.join(_bounds(inner))})" if inner else "")
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("empty" if part is types.NoneType else _type(part) for part in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(map(_type, arguments)) + "]"
    if origin is dict or annotation is typing.Any:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names.get(annotation, "section")


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "see below"
    if field.default is PydanticUndefined:
        return "**needed**"
    if field.default is None:
        return "empty"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
