"""Reading what others wrote: of a file without end only so much is read, and then it is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr

LARGEST_LINE = 1 << 24  # bytes of one record: those with every vote and its text have some hundred kB
LARGEST_JSON = (
    1 << 30
)  # bytes of a file that is one JSON value: parsed, it takes some times its size of memory
MOST_RECORDS = (
    20_000_000  # of a file: ten times the largest published preference sets; a row takes about 1 kB
)
LARGEST_TABLE = 1 << 30  # bytes that a file's records may always unpack to, and beyond that
MOST_UNPACKED = 1000  # times the file's size: far more than columns that repeat a value save


class TooLongError(ValueError):
    """A record that has no end within LARGEST_LINE; `line`: where it begins, from 1."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line} is longer than {LARGEST_LINE:,} bytes")
        self.line = line


def lines(stream: IO[AnyStr]) -> Iterator[AnyStr]:
    """The lines of a file whose `readline` takes a limit. Raises TooLongError, having read no further."""
    number = 1
    while line := stream.readline(LARGEST_LINE + 1):
        if len(line) > LARGEST_LINE:
            raise TooLongError(number)
        yield line
        number += 1


def read_text(path: Path, most: int) -> str:
    """A whole UTF-8 file. Raises OSError, and ValueError for one of more than `most` bytes."""
    with path.open(encoding="utf-8") as stream:
        return _at_most(stream, most)


def load_json(stream: IO[bytes]) -> Any:
    """As `json.load`. Raises ValueError for what is no JSON, more than LARGEST_JSON bytes or nested too deep."""
    return parse_json(_at_most(stream, LARGEST_JSON))


def parse_json(text: str | bytes, hook: Callable | None = None) -> Any:
    """As `json.loads` with `object_pairs_hook`, and ValueError for what is nested too deep."""
    try:
        return json.loads(text, object_pairs_hook=hook)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def rewindable(stream: IO[bytes]) -> IO[bytes]:
    """The stream, or its bytes in memory: some servers send a file once, from its start.

    Raises ValueError for such a one of more than LARGEST_JSON bytes.
    """
    try:
        stream.seek(1)
        stream.seek(0)
    except (OSError, ValueError):
        return io.BytesIO(_at_most(stream, LARGEST_JSON))
    return stream


def _at_most(stream: IO[AnyStr], most: int) -> AnyStr:
    content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"holds more than {most:,} bytes")
    return content
