"""The table of all configuration keys, from their sections: `configs/OPTIONS.md` is its output."""

from __future__ import annotations

import copy
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from pgdpo.config import Config, ModelConfig, families, family_class
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


def listing(word: str | None = None) -> RenderableType:
    """All keys, or those that hold `word`, in either case, and after them those whose description does.

    Raises InputError, with the nearest keys, if there is none.
    """
    if word is None:
        return Group(*(_entry(key, field) for key, field in keys()))
    named = {key: field for key, field in keys() if word.lower() in key.lower()}
    told = {key: field for key, field in keys() if word.lower() in (field.description or "").lower()}
    if not named and not told:
        near = _nearest(word)
        raise InputError(
            f"no key and no description holds {word!r}; "
            + (f"nearest: {', '.join(near)}; " if near else "")
            + "`pgdpo options` lists all"
        )
    return Group(
        *(_entry(key, field, word) for key, field in named.items()),
        *([Text("in descriptions", "dim")] if named and told.keys() - named.keys() else []),
        *(_entry(key, field, word) for key, field in told.items() if key not in named),
    )


def _entry(key: str, field: FieldInfo, word: str = "") -> Group:
    """Two paragraphs: the key with what it takes, and under it what it does."""
    default = _plain(_default(field))
    takes = f"{_plain(_takes(field))}; {default if field.is_required() else f'default: {default}'}"
    head = Text.assemble((key, "bold"), f"  {takes}")
    about = Text(_plain(field.description or ""))
    for text in (head, about):
        text.highlight_words([word] if word else [], "yellow", case_sensitive=False)
    return Group(head, Padding(about, (0, 0, 0, 4)))


def _plain(markdown: str) -> str:
    return markdown.replace("`", "").replace("*", "").replace("\\|", "|")


def _nearest(word: str, most: int = 3) -> list[str]:
    """The keys of which a part, between dots or underscores, is most like `word`."""

    def likeness(key: str) -> float:
        parts = {key, *key.split("."), *re.split(r"[._]", key)}
        return max(difflib.SequenceMatcher(None, word.lower(), part).ratio() for part in parts)

    alike = {key: likeness(key) for key, _ in keys()}
    return [key for key in sorted(alike, key=alike.__getitem__, reverse=True) if alike[key] > 0.6][:most]


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
        if nested is ModelConfig:
            yield from ((f"{key}.{name}", field) for name, field in _of_families().items())


def _of_families() -> dict[str, FieldInfo]:
    """The keys that families have besides; one of several says what it is to each."""
    found: dict[str, FieldInfo] = {}
    for family in families():
        for name, field in family_class(family).settings.model_fields.items():
            if name in ModelConfig.model_fields:
                continue
            if name in found:
                field = copy.copy(field)
                field.description = f"{found[name].description} {field.description}"
            found[name] = field
    return found


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
