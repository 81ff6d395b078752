"""What all sections share: unknown keys and numbers without a value are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from pgdpo.files.locations import expanded
from pgdpo.messages.problems import broken_text


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` as true, which pydantic would take for 1."""
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError(f"{str(value).lower()} (or yes, no, on, off) stands where a number belongs")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_that_is_meant(cls, value: Any) -> Any:
        """A path of the user's home (`~/`) is expanded; half a character goes into no file and no hash."""
        if isinstance(value, (str, list)) and broken_text(value) is not None:
            raise ValueError("it holds half a character or a NUL")
        return type(value)(expanded(str(value))) if isinstance(value, (str, Path)) else value


def section_of(annotation: Any, many: bool = False) -> tuple[type[Section] | None, bool]:
    """(the section that an annotation holds, alone or as one of several choices; whether it is a list of them)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, many
    many = many or get_origin(annotation) is list
    found = (section_of(inner, many) for inner in get_args(annotation))
    return next((each for each in found if each[0] is not None), (None, False))
