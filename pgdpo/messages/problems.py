"""One thing that is wrong with an input, in parts: where, which key, what stands there, what may stand there."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgdpo.messages.errors import InputError

SHOWN = 120  # characters of a value in a message
LINES = 20  # errors that are raised one a line; more are grouped
ALIKE = 3  # of one kind that are named


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

    def __post_init__(self) -> None:
        for part in ("what", "allowed", "suggestion", "pair"):  # they may quote a row, and are printed
            object.__setattr__(self, part, printable(getattr(self, part)))

    @property
    def where(self) -> str:
        if self.line is not None:
            return f"{self.file}:{self.line}"
        return f"{self.file}, row {self.row}" if self.row is not None else self.file

    def __str__(self) -> str:
        text = self.what
        for part in (self.allowed and f"allowed: {self.allowed}", self.suggestion):
            text += f"{' ' if text.endswith('?') else '; '}{part}" if part else ""
        return printable(f"{self.where}: {text}")

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


def printable(text: str) -> str:
    """Text that any file and terminal takes: NUL and halves of characters as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def kinds_of(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Problems grouped by what is to be done about them, in the order in which the groups begin."""
    groups: dict[tuple, list[Problem]] = {}
    for problem in problems:
        kind = (problem.severity, problem.file, problem.key, problem.suggestion)
        groups.setdefault(kind, []).append(problem)
    return list(groups.values())


def raise_errors(problems: Iterable[Problem], beside: str | Path | None = None) -> None:
    """InputError with all errors among `problems`, if there are any.

    Up to LINES stand one a line. More are grouped: each kind with its count and its first rows; all of them, one a
    line, go to a file named after `beside` in that folder, or after the first one's file in the current folder.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if len(errors) > LINES:
        raise InputError(_grouped(errors, beside))
    if errors:
        raise InputError("\n".join(map(str, errors)))


def _grouped(errors: list[Problem], beside: str | Path | None) -> str:
    kinds = sorted(kinds_of(errors), key=len, reverse=True)
    lines = [
        f"{len(errors):,} errors of {len(kinds):,} kind{'s' * (len(kinds) > 1)}; {_listed(errors, beside)}"
    ]
    for kind in kinds[:LINES]:
        first = kind[0]
        mend = "; ".join(filter(None, (first.allowed and f"allowed: {first.allowed}", first.suggestion)))
        lines.append(f"{len(kind):,} of `{first.key or 'the record'}`: {mend}")
        lines += [f"  {problem.where}: {problem.what}" for problem in kind[:ALIKE]]
        lines += ["  ..."] if len(kind) > ALIKE else []
    more = len(kinds) - LINES
    return "\n".join([*lines, *([f"and {more:,} kinds more"] if more > 0 else [])])


def _listed(errors: list[Problem], beside: str | Path | None) -> str:
    """Write all errors to a file; the words that say where it is."""
    place = Path(beside) if beside is not None and "://" not in str(beside) else Path(errors[0].file).name
    file = Path(place).with_suffix(".errors.txt")
    try:
        file.write_text("".join(f"{error}\n" for error in errors), encoding="utf-8")
    except OSError as error:
        with contextlib.suppress(OSError):
            file.unlink()
        return f"they are listed nowhere, as {file} cannot be written ({error.strerror})"
    return f"all, one a line: {file}"


def broken_text(value: Any) -> str | None:
    """The first text in a value of JSON types that no file or hash takes: with half a character (a surrogate of
    UTF-16 without its other half) or a NUL in it; None where all is sound."""
    if isinstance(value, str):
        return value if "\0" in value or _has_half(value) else None
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return next(filter(None, map(broken_text, value)), None) if isinstance(value, (list, tuple)) else None


def _has_half(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    """Words for a message that name the nearest of what is known; empty where none is near."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
