"""One thing that is wrong with an input, in parts: where, which key, what stands there, what may stand there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pgdpo.errors import InputError

SHOWN = 120  # characters of a value in a message


@dataclass(frozen=True)
class Problem:
    """`str(problem)` is one line: file and line, what is wrong, what is allowed, what to do."""

    file: str  # a path or URL, or `command line`
    what: str  # what is wrong, in words, with key and value
    key: str = ""  # `train.steps` of a configuration, `preference` of a row
    value: Any = None
    allowed: str = ""
    suggestion: str = ""
    line: int | None = None  # from 1, of a text file
    row: int | None = None  # from 1, of a table without lines
    pair: str = ""  # the row's id, where it has one
    severity: str = "error"  # or `warning`

    @property
    def where(self) -> str:
        if self.line is not None:
            return f"{self.file}:{self.line}"
        return f"{self.file}, row {self.row}" if self.row is not None else self.file

    def __str__(self) -> str:
        text = self.what
        for part in (self.allowed and f"allowed: {self.allowed}", self.suggestion):
            text += f"{' ' if text.endswith('?') else '; '}{part}" if part else ""
        return f"{self.where}: {text}"

    def as_json(self) -> dict[str, Any]:
        """All parts as JSON types."""
        plain = (
            self.value if isinstance(self.value, (str, int, float, bool, type(None))) else repr(self.value)
        )
        return {
            "severity": self.severity,
            "file": self.file,
            "line": self.line,
            "row": self.row,
            "pair": self.pair,
            "key": self.key,
            "value": plain,
            "problem": self.what,
            "allowed": self.allowed,
            "suggestion": self.suggestion,
        }


def shown(value: Any) -> str:
    """A value as it stands in a message: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def raise_errors(problems: Iterable[Problem], most: int = 20) -> None:
    """InputError with all errors among `problems`, one a line, if there are any."""
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = [f"and {len(errors) - most} more; `pgdpo check` lists all"] if len(errors) > most else []
        raise InputError("\n".join([*map(str, errors[:most]), *more]))
