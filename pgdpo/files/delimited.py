"""CSV and its kin as programs write them: what separates the fields and in which encoding is told from the file."""

from __future__ import annotations

import csv
import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pgdpo.files import bounded
from pgdpo.files.encoding import encoding_of
from pgdpo.messages.console import say

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LOOKED_AT = 1 << 16  # characters, and
RECORDS = 100  # records of them that a delimiter is judged by


@dataclass(frozen=True)
class Dialect:
    """How a file is written; `skipped`: lines before its header."""

    encoding: str
    delimiter: str
    skipped: int = 0

    def __str__(self) -> str:
        return f"{self.encoding.upper()}, fields between {DELIMITERS[self.delimiter]}"


def dialect_of(stream: IO[bytes]) -> Dialect:
    """Of a file that is left at its start. Raises ValueError if its encoding cannot be told."""
    encoding = encoding_of(stream)
    head = _text(stream, encoding).read(LOOKED_AT)
    stream.seek(0)
    first, _, rest = head.partition("\n")
    named = first.strip().removeprefix("sep=")
    if first.startswith("sep=") and named in DELIMITERS:  # Excel's own line
        return Dialect(encoding, named, skipped=1)
    if first.strip("\r\n ") == "sep=":  # a tab, stripped
        return Dialect(encoding, "\t", skipped=1)
    return Dialect(encoding, max(DELIMITERS, key=lambda delimiter: _fit(head, delimiter)))


def _fit(head: str, delimiter: str) -> tuple[float, int]:
    """(share of the first records with as many fields as the header, that number): the greater, the likelier."""
    widths = []
    try:
        for record in itertools.islice(
            csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), RECORDS
        ):
            if any(record):
                widths.append(len(record))
    except csv.Error:  # what it reads then says it
        pass
    if not widths or widths[0] < 2:
        return 0.0, 0
    whole = widths[:-1] if len(head) == LOOKED_AT and len(widths) > 1 else widths  # the last one may be cut
    return sum(width == widths[0] for width in whole) / len(whole), widths[0]


def records(stream: IO[bytes], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins on, fields) of the header and of every record that holds anything.

    Raises TooLongError for a record without end, ValueError for text that is none or quotes that don't match.
    """
    csv.field_size_limit(bounded.LARGEST_LINE)
    line, size = (
        1 + dialect.skipped,
        0,
    )  # of a record: its first line, its length: quoted fields hold line breaks

    def lines() -> Iterator[str]:
        nonlocal size
        for text in itertools.islice(bounded.lines(_text(stream, dialect.encoding)), dialect.skipped, None):
            size += len(text)
            if size > bounded.LARGEST_LINE:
                raise bounded.TooLongError(line)
            yield text

    reader = csv.reader(lines(), delimiter=dialect.delimiter, strict=True)
    try:
        for fields in reader:
            size = 0
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1 + dialect.skipped
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num + dialect.skipped}: {error}") from error


def column_names(header: list[str]) -> list[str]:
    """Spaces around a name mean nothing, and columns at the end that have none are a spreadsheet's; one before others
    (pandas' index) is told by its place."""
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    names = [name or f"column {place}" for place, name in enumerate(names, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"column `{twice}` stands twice in the header: rename one of the two")
    return names


@functools.lru_cache(64)  # a file is read more than once
def say_if_assumed(file: str, dialect: Dialect) -> None:
    """Say which encoding a file without a mark was taken to be in."""
    if not dialect.encoding.startswith("utf"):
        say(
            f"{file}: it is not UTF-8, and read as {dialect.encoding}; if letters come out wrong, save it as UTF-8"
        )


def _text(stream: IO[bytes], encoding: str) -> io.TextIOWrapper:
    """Halves of characters come through, for the row that holds one to be named."""
    errors = "surrogatepass" if encoding.startswith("utf") else "strict"
    return io.TextIOWrapper(_Open(stream), encoding, errors=errors, newline="")


class _Open(io.BufferedReader):
    """A reader that leaves its stream open: it is read from its start again."""

    def close(self) -> None:
        self.detach()
