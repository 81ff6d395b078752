"""What a format declares, and what its reader is given and gives back."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgdpo.files.locations import folder_of, is_url
from pgdpo.files.tables import Record, count_records, read_records
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, shown
from pgdpo.rows.schema import TIE

TABLES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".json", ".txt")


@dataclass(frozen=True)
class Options:
    """What the user may choose; each format's summary says which it reads."""

    dimension: str | None = None  # videoalign, rapidata: the aspect that decides
    pairs: str | None = None  # best_of_n: all | best-worst (None) | so many per prompt
    groups: bool = False  # formats with `lists`: a row holds all clips of a prompt
    segment_seconds: float = 1.0  # densedpo: length of a segment whose times are not given
    columns: Mapping[str, Any] = field(default_factory=dict)  # table: what the user says of them, by option
    command: tuple[str, ...] = ()  # table: SOURCE, OUT and other options, for the command line that it shows


@dataclass(frozen=True)
class Media:
    """A clip, picture or mask of a source: a path relative to `folder`, a URL, or its bytes."""

    content: str | bytes
    folder: str

    @staticmethod
    def of(value: Any, folder: str) -> Media | None:
        """From what a column may hold: a path, bytes, or {"bytes", "path"} as the `datasets` library stores media."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path") or value.get("url") or value.get("src")
        return Media(value, folder) if isinstance(value, (str, bytes)) and value else None


@dataclass
class Found:
    """One native row, with Media for its clips, all fields of the source that it was made from, and the record that
    these stand in, where it is one."""

    row: dict[str, Any]
    fields: dict[str, Any]
    record: Record | None = None


@dataclass
class Reading:
    """`total` records, read one by one.

    When all are read, `dropped` says how many gave no row, `left_over` what else found no place in a pair, and `notes`
    what else a reader should know.
    """

    total: int
    found: Iterable[Found | Problem]
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dropped: int = 0


@dataclass(frozen=True)
class Format:
    """One format. `renames`: columns of the source that stand unchanged under a native key; `lists`: whether it may
    hold more than pairs, and `read` knows `groups`."""

    name: str
    summary: str
    layout: str  # what SOURCE holds
    read: Callable[[str, Options], Reading]
    renames: Mapping[str, str] = field(default_factory=dict)
    lists: bool = False


def read_rows(
    source: str, found_in: Callable[[Record], Iterator[Found | Problem]], endings: tuple[str, ...] = TABLES
) -> Reading:
    """A Reading of all records of a file, or of a folder's files, through `found_in`."""
    files = tables_of(source, endings)

    def found() -> Iterator[Found | Problem]:
        for item in records_of(files):
            of_record = [item] if isinstance(item, Problem) else list(found_in(item))
            reading.dropped += not of_record
            for each in of_record:
                if isinstance(each, Found):
                    each.record = item
                yield each

    with readable(source):
        reading = Reading(sum(map(count_records, files)), found())
    return reading


def records_of(files: Iterable[str]) -> Iterator[Record | Problem]:
    """All records of these files. Raises InputError for one that cannot be read."""
    for file in files:
        with readable(file):
            yield from read_records(file)


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Raises InputError in place of what keeps a file from being read."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source}: cannot be read ({reason})") from error


def tables_of(source: str, endings: tuple[str, ...] = TABLES) -> list[str]:
    """The file `source` itself, or all files below the folder with the first ending that any has."""
    if is_url(source):
        import fsspec

        filesystem, path = fsspec.url_to_fs(source)
        inside = [] if not filesystem.isdir(path) else sorted(filesystem.find(path))
        files = [filesystem.unstrip_protocol(name) for name in inside] or [source]
    else:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{source}: no such file or folder; SOURCE is what was downloaded")
        files = sorted(map(str, path.rglob("*"))) if path.is_dir() else [source]
    for ending in endings:
        matching = [file for file in files if file.lower().endswith(ending)]
        if matching:
            return matching
    save = "; save it as CSV" if source.lower().endswith((".xlsx", ".xls", ".ods", ".numbers")) else ""
    raise InputError(f"{source}: {'holds' if len(files) > 1 else 'is'} no {', '.join(endings)} file{save}")


def first_of(record: Record, *names: str) -> tuple[str, Any] | None:
    """(name, value) of the first of these columns that the record holds a value for."""
    for name in names:
        value = record.values.get(name)
        if not is_missing(value):
            return name, value
    return None


def is_missing(value: Any) -> bool:
    """None, an empty text, or the NaN that tables hold where they hold nothing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def number(value: Any, comma: bool = False) -> float | None:
    """A finite number, also from a CSV's text, with a decimal comma too; None for anything else.

    `comma`: commas are decimal ones, as the column's other values show; else 1,234 is None: it may be a thousand.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value):
        if not comma and not is_decimal_comma(value):
            return None
        value = value.replace(",", ".")
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        return None
    return parsed if math.isfinite(parsed) else None


def is_decimal_comma(value: Any) -> bool:
    """Whether a comma in a text can only be a decimal one: 0,75 or 1,5, not 1,234."""
    found = re.fullmatch(r"\s*[+-]?(\d+),(\d+)\s*", value) if isinstance(value, str) else None
    return bool(found) and (found[1].startswith("0") or len(found[1]) > 3 or len(found[2]) != 3)


def whole(value: Any) -> int | None:
    """`number`, where it is a whole one."""
    parsed = number(value)
    return int(parsed) if parsed is not None and parsed == int(parsed) else None


def lacks(record: Record, *names: str) -> Problem:
    """The Problem of a record that holds none of these columns, or nothing in them."""
    there = [name for name in names if name in record.values]
    wanted = " or ".join(f"`{name}`" for name in there or names)
    return record.problem(
        f"{wanted} is {'empty' if there else 'missing'}",
        key=(there or names)[0],
        value=None,
        allowed=f"one of the columns {', '.join(names)}; here: {', '.join(map(str, record.values))}",
        suggestion=f"{'fill it in' if there else 'add it'}, or check that FORMAT is the right one "
        "(`pgdpo import --help`)",
    )


def wrong(record: Record, key: str, value: Any, allowed: str, suggestion: str) -> Problem:
    """The Problem of a value that the format doesn't know."""
    return record.problem(
        f"`{key}` is {shown(value)}", key=key, value=value, allowed=allowed, suggestion=suggestion
    )


def ordered(first: Media, second: Media, share: float) -> tuple[dict[str, Any], bool]:
    """(chosen, rejected and preference, whether they are swapped), `share` being the first clip's."""
    swapped = share < TIE
    chosen, rejected = (second, first) if swapped else (first, second)
    return {"chosen": chosen, "rejected": rejected, "preference": 1 - share if swapped else share}, swapped


def scored(
    chosen: Mapping[str, float], rejected: Mapping[str, float], decisive: str | None = None
) -> dict[str, Any]:
    """`scores` of both sides; with the `decisive` score's name also `reward` and `reward_margin`, for objectives."""
    row: dict[str, Any] = {"scores": {"chosen": dict(chosen), "rejected": dict(rejected)}}
    if decisive is not None:
        row["reward"] = [chosen[decisive], rejected[decisive]]
        row["reward_margin"] = chosen[decisive] - rejected[decisive]
    return row


def media_of(record: Record, value: Any) -> Media | None:
    """A clip that the record names; its path is relative to the record's file."""
    return Media.of(value, folder_of(record.file))
