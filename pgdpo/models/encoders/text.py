"""A text encoder as its pipeline calls it: tokenizer, template, limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TextReader:
    """A text encoder as its pipeline calls it."""

    name: str  # what kind of encoder it is
    limit: int  # tokens; those of the template and the tokenizer's own are among them
    tokenizer: str = "tokenizer"  # its folder
    template: str = "{}"  # what the pipeline puts around the prompt
    clean: Callable[[str], str] = str  # what the pipeline does to the prompt before

    def __str__(self) -> str:
        return f"{self.name} ({self.tokenizer})"
