"""What pydantic and the objectives find wrong with a configuration, as Problems: line, key, value, allowed, mend."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pgdpo.config.families import families, family_class
from pgdpo.config.model import ModelConfig
from pgdpo.config.section import section_of
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, shown
from pgdpo.objectives import available, check_options, get_spec

NAMES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    Any: "any value",
}
BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def explain(model: type[BaseModel], file: Path | str, lines: Mapping[tuple, int], error: dict) -> Problem:
    """One of pydantic's errors. `lines`: the line of every key of the file, by its path."""
    # Pydantic puts the kinds of a union into the path too: `Config`, `function-after[...]`, never a key's name.
    location = tuple(part for part in error["loc"] if not isinstance(part, str) or part.isidentifier())
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "model_type":
        message = "a mapping is expected"
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return _unknown(model, str(file), lines, location, error["input"])
    if not location:
        return _between_keys(model, str(file), lines, message, error["input"])
    key, value, field = ".".join(map(str, location)), error["input"], field_at(model, location)
    about = f" {field.description.rstrip('.')}" if field and field.description else ""
    place = {"key": key, "line": line_of(lines, location), "allowed": allowed_by(field) if field else ""}
    if error["type"] == "missing":
        section = f" under `{'.'.join(map(str, location[:-1]))}:`" if location[1:] else ""
        whole = isinstance(location[-1], int)  # an entry of a list
        mend = "write all entries" if whole else f"add `{location[-1]}:`{section}"
        return Problem(str(file), f"key `{key}` is missing:{about or ' a section'}", suggestion=mend, **place)
    what = f"`{key}` is {shown(value)}: {message[0].lower()}{message[1:]}.{about}".rstrip(".")
    return Problem(str(file), what, value=value, suggestion=_mend(field, value), **place)


def _unknown(
    model: type[BaseModel], file: str, lines: Mapping[tuple, int], location: tuple, value: Any
) -> Problem:
    *parents, name = location
    section = model_at(model, tuple(parents))
    known = list(section.model_fields) if section else []
    key = ".".join(map(str, location))
    if new := renamed(section).get(name):
        called = ".".join(map(str, (*parents, new)))
        what, mend = f"`{key}` is called `{called}` now", f"rename it to `{called}`"
        return Problem(file, what, key, value, called, mend, line_of(lines, location))
    if owners := _families_with(section, name):
        what = f"`{key}` is for {', '.join(owners)}, and model.family is `{_family_of(section)}`"
        return Problem(file, what, key, value, ", ".join(known), "leave it out", line_of(lines, location))
    close = difflib.get_close_matches(str(name), known, n=1) or _meant_by(section, parents, name)
    homes = [
        f"{home}.{name}"
        for home in model.model_fields
        if (inner := model_at(model, (home,))) and name in inner.model_fields
    ]
    guess = close or homes[:1]
    what = f"unknown key `{key}`" + (f": did you mean `{guess[0]}`?" if guess else "")
    mend = f"rename or move it to `{guess[0]}`" if guess else "remove it"
    return Problem(file, what, key, value, ", ".join(known), mend, line_of(lines, location))


def _families_with(section: type[BaseModel] | None, name: Any) -> list[str]:
    """Where `section` is a family's `model`: the families that have this key of their own."""
    if section is None or not issubclass(section, ModelConfig):
        return []
    return [family for family in families() if name in family_class(family).settings.model_fields]


def _family_of(section: type[BaseModel]) -> str:
    return next(family for family in families() if family_class(family).settings is section)


def renamed(section: type[BaseModel] | None) -> dict[str, str]:
    """Keys of a section under the names that they had before (`was`)."""
    fields = section.model_fields if section else {}
    extra = {key: field.json_schema_extra or {} for key, field in fields.items()}
    return {about["was"]: key for key, about in extra.items() if "was" in about}


def _meant_by(section: type[BaseModel] | None, parents: Sequence, name: Any) -> list[str]:
    """Keys of a section, with their whole path, that are asked for under this name: each names its own (`meant_by`)."""
    fields = section.model_fields if section else {}
    return [
        ".".join(map(str, (*parents, key)))
        for key, field in fields.items()
        if name in (field.json_schema_extra or {}).get("meant_by", ())
    ]


def _between_keys(
    model: type[BaseModel], file: str, lines: Mapping[tuple, int], message: str, raw: Any
) -> Problem:
    """What a section's own check says of several keys; the first that it names is taken for the place."""
    named = re.search(rf"\b(?:{'|'.join(model.model_fields)})(?:\.[\w-]+)+", message)
    key = tuple(named[0].split(".")) if named else ()
    what, _, allowed = message.partition("; allowed: ")
    field = field_at(model, key)
    allowed = allowed or (allowed_by(field) if field else "")
    return Problem(
        file,
        what,
        ".".join(key),
        _value_at(raw, key),
        allowed,
        "change one of the keys that it names",
        line_of(lines, key),
    )


def option_problems(file: Path | str, lines: Mapping[tuple, int], objective: Any) -> list[Problem]:
    """Everything that is wrong with an objective's name and options."""
    if not isinstance(objective, Mapping):
        return []  # pydantic says it
    if "name" not in objective:
        what = "key `objective.name` is missing: the loss that is trained"
        mend = "add `name: pg_dpo` under `objective:`; `pgdpo objectives` lists the names"
        line = line_of(lines, ("objective",))
        return [Problem(str(file), what, "objective.name", None, ", ".join(available()), mend, line)]
    name, problems = objective["name"], []
    try:
        get_spec(name)
    except InputError as error:
        what, _, known = str(error).partition(" Available: ")
        what, mend = what.rstrip("."), "`pgdpo objectives` describes them"
        line = line_of(lines, ("objective", "name"))
        return [
            Problem(
                str(file),
                what.rstrip("."),
                "objective.name",
                name,
                known,
                "`pgdpo objectives` describes them",
                line,
            )
        ]
    for key, value in objective.items():
        if key not in ("name", "parts"):  # how the parts of a sample are put together is of every objective
            problems += _option(str(file), lines, name, key, value)
    return problems or _together(str(file), lines, objective)


def _option(file: str, lines: Mapping[tuple, int], name: str, key: Any, value: Any) -> list[Problem]:
    if isinstance(key, bool):  # `on:` without quotes
        known = ", ".join(get_spec(name).options)
        what = f"objective `{name}`: YAML reads a bare `on`, `off`, `yes` or `no` as true or false, also as a key"
        line = line_of(lines, ("objective", "on" if key else "off"))
        return [Problem(file, what, f"objective.{key}", value, known, 'write it in quotes: "on":', line)]
    try:
        check_options(name, **{str(key): value})
    except InputError as error:
        what, _, allowed = re.sub(r" Its options: |; allowed: ", "\0", str(error), count=1).partition("\0")
        option = get_spec(name).options.get(key)
        mend = "take one of these" if allowed else ""
        mend = f"leave it out for the default, {option.default}" if option else mend
        line = line_of(lines, ("objective", key))
        return [Problem(file, what, f"objective.{key}", value, allowed, mend, line)]
    return []


def _together(file: str, lines: Mapping[tuple, int], objective: Mapping) -> list[Problem]:
    """What is wrong with options that are right one by one; the first that is named is taken for the place."""
    try:
        check_options(**{key: value for key, value in objective.items() if key != "parts"})
    except InputError as error:
        what, _, allowed = str(error).partition("; allowed: ")
        key = re.findall("`(.+?)`", what)[1]  # behind the objective's name
        place, line = f"objective.{key}", line_of(lines, ("objective", key))
        return [Problem(file, what, place, objective.get(key), allowed, "change one of these options", line)]
    return []


def line_of(lines: Mapping[tuple, int], location: tuple) -> int | None:
    """The line of a key, or of the nearest section around it."""
    return next(
        (lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), None
    )


def allowed_by(field: FieldInfo) -> str:
    """What a key may hold, in words: kind and range."""
    kind = _kind(field.annotation)
    if kind.endswith(" or null"):
        return f"{_bounded(kind.removesuffix(' or null'), field.metadata)} or null"
    return _bounded(kind, field.metadata)


def _bounded(kind: str, limits: Sequence[Any]) -> str:
    """A kind with its range, from the limits that pydantic keeps as a field's metadata."""
    bounds = [
        f"{sign} {getattr(limit, name):g}"
        for limit in limits
        for name, sign in BOUNDS
        if getattr(limit, name, None) is not None
    ]
    least = next((limit.min_length for limit in limits if getattr(limit, "min_length", None)), None)
    kind += f" {' and '.join(bounds)}" if bounds else ""
    return f"{kind}, at least {least}" if least else kind


def _kind(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if origin is Literal:
        return ", ".join(map(str, inside))
    if origin is Annotated:
        bounds = [limit for each in inside[1:] for limit in getattr(each, "metadata", [])]
        return _bounded(_kind(inside[0]), bounds)
    if origin in (Union, types.UnionType):
        kinds = [_kind(each) for each in inside if each is not type(None)]
        return " or ".join([*kinds, *(["null"] if type(None) in inside else [])])
    if origin is list:
        return f"a list of {_kind(inside[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_kind, inside))}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    return "a mapping"


def _mend(field: FieldInfo | None, value: Any) -> str:
    if field is None:
        return "remove it, or write what is allowed"
    choices = [str(each) for each in _choices(field.annotation)]
    close = difflib.get_close_matches(str(value), choices, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    if default is PydanticUndefined:
        return "write a value; there is no default"
    if isinstance(default, BaseModel):
        return "leave the section out for its defaults"
    return f"leave the key out for the default, {'null' if default is None else default}"


def _choices(annotation: Any) -> list:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for each in get_args(annotation) for choice in _choices(each)]


def field_at(root: type[BaseModel], location: tuple) -> FieldInfo | None:
    """The nearest field around a place; an entry of a list is its list's."""
    names = tuple(part for part in location if isinstance(part, str))
    model = model_at(root, names[:-1])
    return model.model_fields.get(names[-1]) if model and names else None


def model_at(root: type[BaseModel], location: tuple) -> type[BaseModel] | None:
    """The section at a path of keys; numbers in it, of entries of a list, are passed over."""
    model: type[BaseModel] = root
    for part in location:
        if isinstance(part, int):
            continue
        found = section_of(model.model_fields[part].annotation)[0] if part in model.model_fields else None
        if found is None:
            return None
        model = found
    return model


def _value_at(value: Any, location: tuple) -> Any:
    for part in location:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
