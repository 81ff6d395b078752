"""Tables of records, in and out, one record at a time: JSONL, JSON, CSV and its kin, Parquet; local files or URLs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgdpo.files import bounded, delimited
from pgdpo.files.atomic import atomic_path
from pgdpo.files.locations import is_url, open_binary, plain
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, shown

JSON_COLUMNS = b"pgdpo.json_columns"  # key of a Parquet file's metadata: columns that hold JSON text
DELIMITED = (".csv", ".tsv", ".tab")
BATCH = 1024  # records of a Parquet file in memory at a time, and
BATCH_BYTES = (
    1 << 26
)  # bytes of them, if each held the largest value that its column can: a few may repeat it
WRITTEN = (".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Record:
    """One record and its place: `line` of a text file or `row` of a table, from 1."""

    file: str
    values: dict[str, Any]
    line: int | None = None
    row: int | None = None

    def problem(self, what: str, **parts) -> Problem:
        """A Problem at this place."""
        return Problem(self.file, what, line=self.line, row=self.row, **parts)


def read_records(location: str | Path) -> Iterator[Record | Problem]:
    """The records of one file, by its ending: .parquet, .json, .csv, .tsv, .tab, .txt, anything else is JSONL.

    .json: a list, JSONL, or what pandas writes by default ({column: {row: value}}). .csv and its kin: whatever
    delimiter and encoding a spreadsheet gave it (`delimited.py`); .txt: these, or JSONL.

    A line that is no record is yielded as a Problem; one without end, or more than MOST_RECORDS, ends the reading
    with a Problem. Raises OSError if the file cannot be opened, ValueError (UnicodeDecodeError and pyarrow's errors
    among them) if it is not what its name says.
    """
    location = plain(location)
    file, kind = str(location), Path(str(location)).suffix.lower()
    readers: dict[str, Callable] = {
        ".parquet": _parquet,
        ".json": _json,
        ".txt": _text,
        **dict.fromkeys(DELIMITED, _delimited),
    }
    with open_binary(location) as stream:
        try:
            for number, item in enumerate(readers.get(kind, _jsonl)(file, stream), start=1):
                if number > bounded.MOST_RECORDS:
                    yield _too_many(file)
                    return
                yield item
        except bounded.TooLongError as error:
            yield Problem(
                file,
                f"the record that begins here is longer than {bounded.LARGEST_LINE:,} bytes",
                allowed=f"records of up to {bounded.LARGEST_LINE:,} bytes, each ended by a line break",
                suggestion="check that the file is what its name says, and move long fields out of it",
                line=error.line,
            )


def _too_many(file: str) -> Problem:
    return Problem(
        file,
        f"holds more than {bounded.MOST_RECORDS:,} records",
        allowed=f"up to {bounded.MOST_RECORDS:,} records a file",
        suggestion="split it, and train on the parts one after another",
    )


def _jsonl(file: str, stream) -> Iterator[Record | Problem]:
    # In a buffer of its own: that of fsspec's files has a readline without a limit.
    for number, line in enumerate(bounded.lines(io.BufferedReader(stream)), start=1):
        try:
            text = line.decode("utf-8").strip().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            yield Problem(
                file,
                f"not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1})",
                value=repr(line[:80]),
                allowed="UTF-8 text",
                suggestion="save the file as UTF-8",
                line=number,
            )
            continue
        if text:
            yield _parsed(file, number, text)


def _parsed(file: str, line: int, text: str) -> Record | Problem:
    expected = 'a JSON object, such as {"id": "1", "prompt": "...", "chosen": "a.mp4", "rejected": "b.mp4"}'
    try:
        values = bounded.parse_json(text, _unique)
    except json.JSONDecodeError as error:
        return Problem(
            file,
            f"not JSON ({error.msg} at column {error.colno}): {shown(text)}",
            value=text[:80],
            allowed=expected,
            suggestion="mend or remove the line",
            line=line,
        )
    except _Twice as error:
        return Problem(
            file,
            f"key `{error.key}` stands twice in one row",
            error.key,
            error.value,
            "each key once",
            "remove one of the two",
            line=line,
        )
    except ValueError as error:  # nested too deep, or a number of thousands of digits
        return Problem(file, f"not JSON ({error})", allowed=expected, suggestion="remove the line", line=line)
    if not isinstance(values, dict):
        return Problem(
            file,
            f"expected a JSON object, found {type(values).__name__}",
            value=text[:80],
            allowed=expected,
            suggestion="write one object a line",
            line=line,
        )
    return Record(file, values, line=line)


class _Twice(ValueError):
    def __init__(self, key: str, value: Any) -> None:
        super().__init__(key)
        self.key, self.value = key, value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise _Twice(key, value)
        values[key] = value
    return values


def _json(file: str, stream) -> Iterator[Record | Problem]:
    stream = bounded.rewindable(stream)
    if _is_jsonl(stream):
        yield from _jsonl(file, stream)
        return
    try:
        content = bounded.parse_json(bounded._at_most(stream, bounded.LARGEST_JSON), _unique)
    except _Twice as error:
        raise ValueError(f"key `{error.key}` stands twice in one object: remove one of the two") from error
    if isinstance(content, dict) and content and all(isinstance(column, dict) for column in content.values()):
        content = _rows_of_columns(content)
    if not isinstance(content, list):
        raise ValueError(f"holds {type(content).__name__}, expected a list of objects")
    for number, values in enumerate(content, start=1):
        if isinstance(values, dict):
            yield Record(file, values, row=number)
        else:
            what = f"expected an object, found {type(values).__name__}"
            yield Problem(file, what, value=values, allowed="an object", suggestion="remove it", row=number)


def _is_jsonl(stream) -> bool:
    """Whether an object is whole in the first line, and another begins behind it: many name JSONL so."""
    first = stream.readline(bounded.LARGEST_LINE)
    behind = stream.read(1 << 12).lstrip()
    stream.seek(0)
    with contextlib.suppress(ValueError):
        return behind.startswith(b"{") and isinstance(bounded.parse_json(first), dict)
    return False


def _rows_of_columns(columns: dict[str, dict]) -> list[dict]:
    """pandas' `to_json`: {column: {row's number: value}}. Raises ValueError for {name: record}."""
    labels = dict.fromkeys(label for column in columns.values() for label in column)
    if not all(map(str.isdigit, labels)):
        raise ValueError("holds an object of objects; write a list of them, with their names as a field")
    return [{name: column.get(label) for name, column in columns.items()} for label in labels]


def _delimited(file: str, stream) -> Iterator[Record | Problem]:
    stream = bounded.rewindable(stream)
    dialect = delimited.dialect_of(stream)
    delimited.say_if_assumed(file, dialect)
    records = delimited.records(stream, dialect)
    _, header = next(records, (1, []))
    names = delimited.column_names(header)
    for line, fields in records:
        more = any(fields[len(names) :])
        if more or len(fields) < len(names):
            yield Problem(
                file,
                f"the line has {'more' if more else 'fewer'} fields than the header",
                allowed=f"{len(names)} fields",
                suggestion=f"put fields that hold {delimited.DELIMITERS[dialect.delimiter]} into quotes",
                line=line,
            )
            continue
        yield Record(file, dict(zip(names, fields, strict=False)), line=line)


def _text(file: str, stream) -> Iterator[Record | Problem]:
    """A `.txt`: JSONL, a JSON list, or what a spreadsheet exports under that name."""
    stream = bounded.rewindable(stream)
    start = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    stream.seek(0)
    is_list = start.startswith(b"[") and start[1:].lstrip().startswith(b"{")
    yield from (_jsonl if start.startswith(b"{") else _json if is_list else _delimited)(file, stream)


def _parquet(file: str, stream) -> Iterator[Record | Problem]:
    import pyarrow.parquet as parquet

    most = max(bounded.LARGEST_TABLE, bounded.MOST_UNPACKED * stream.seek(0, os.SEEK_END))
    with parquet.ParquetFile(stream) as table:
        metadata = table.metadata
        encoded = bounded.parse_json((table.schema_arrow.metadata or {}).get(JSON_COLUMNS, b"[]"))
        unpacked = number = 0
        for group in range(metadata.num_row_groups):
            for batch in table.iter_batches(_batch_of(metadata.row_group(group)), row_groups=[group]):
                unpacked += batch.nbytes
                if unpacked > most:
                    raise ValueError(f"its records unpack to more than {most:,} bytes")
                for values in _values_of(batch):
                    number += 1
                    if isinstance(values, str):
                        yield _not_text(file, number, values)
                        continue
                    texts = {name: values[name] for name in encoded if values.get(name) is not None}
                    decoded = {name: bounded.parse_json(text) for name, text in texts.items()}
                    yield Record(file, {**values, **decoded}, row=number)


def _values_of(batch) -> Iterator[dict[str, Any] | str]:
    """The records of a batch; the name of the column at fault for one whose text is not UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            yield _values_at(batch, place)


def _values_at(batch, place: int) -> dict[str, Any] | str:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[place].as_py()
        except UnicodeDecodeError:
            return name
    return values


def _not_text(file: str, row: int, column: str) -> Problem:
    return Problem(
        file,
        f"`{column}` holds bytes that are no UTF-8, such as half a character",
        column,
        allowed="UTF-8 text",
        suggestion="write the text again, without them",
        row=row,
    )


def _batch_of(group) -> int:
    """How many records of a row group to hold at a time."""
    sizes = [group.column(place).total_uncompressed_size for place in range(group.num_columns)]
    return max(1, min(BATCH, BATCH_BYTES // max(sizes, default=1)))


@contextlib.contextmanager
def writer(location: str | Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """`write(record)` appends to a JSONL (or, by its ending, Parquet) file that appears when all is written.
    Raises InputError for another ending, by which it would be read as something else.

    Records are JSON types. Parquet: columns of one plain type are stored as such, others as JSON text, which
    `read_records` undoes; keys that no record holds a value for are left out.
    """
    location = plain(location)
    if not str(location).lower().endswith(WRITTEN):
        raise InputError(
            f"{location}: a manifest is written as {', '.join(WRITTEN)}: give its name such an ending"
        )
    remote = is_url(location)
    with contextlib.ExitStack() as stack:
        if remote:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = folder / Path(str(location)).name
        else:
            path = stack.enter_context(atomic_path(Path(location)))
        to_parquet = Path(str(location)).suffix.lower() == ".parquet"
        lines = path.with_name(f"{path.name}.rows") if to_parquet else path
        stack.callback(lambda: lines.unlink(missing_ok=True) if to_parquet else None)
        columns = _Columns()
        with lines.open("w", encoding="utf-8") as stream:

            def write(record: dict[str, Any]) -> None:
                columns.see(record)
                stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

            yield write
            stream.flush()
            os.fsync(stream.fileno())
        if to_parquet:
            _to_parquet(lines, path, columns)
        if remote:
            import fsspec

            filesystem, target = fsspec.url_to_fs(str(location))
            filesystem.makedirs(filesystem._parent(target), exist_ok=True)
            filesystem.put_file(str(path), target)


class _Columns:
    """The types that each column of the records was seen to have."""

    def __init__(self) -> None:
        self.types: dict[str, set[type]] = {}

    def see(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            kinds = self.types.setdefault(key, set())
            if value is not None:
                wide = isinstance(value, int) and abs(value) >= 2**63  # more than 64 bits: as JSON text
                kinds.add(object if wide else type(value))

    def schema(self):
        """A pyarrow schema, and the names of the columns that are JSON text."""
        import pyarrow

        plain = {
            frozenset({str}): pyarrow.string(),
            frozenset({bool}): pyarrow.bool_(),
            frozenset({int}): pyarrow.int64(),
            frozenset({float}): pyarrow.float64(),
        }
        held = {key: frozenset(kinds) for key, kinds in self.types.items() if kinds}
        encoded = [key for key, kinds in held.items() if kinds not in plain]
        fields = [(key, plain.get(kinds, pyarrow.string())) for key, kinds in held.items()]
        metadata = {JSON_COLUMNS: json.dumps(encoded).encode()}
        return pyarrow.schema(fields, metadata=metadata), encoded


def _to_parquet(lines: Path, path: Path, columns: _Columns) -> None:
    import itertools

    import pyarrow
    import pyarrow.parquet as parquet

    schema, encoded = columns.schema()
    with lines.open(encoding="utf-8") as stream, parquet.ParquetWriter(path, schema) as table:
        while batch := [json.loads(line) for line in itertools.islice(stream, BATCH)]:
            for record in batch:
                for key in encoded:
                    if record.get(key) is not None:
                        record[key] = json.dumps(record[key], ensure_ascii=False)
            table.write_table(pyarrow.Table.from_pylist(batch, schema))


def dialect_of(location: str | Path) -> delimited.Dialect | None:
    """How a CSV or its kin is written; None for other files. Raises OSError, ValueError."""
    if not str(location).lower().endswith(DELIMITED):
        return None
    with open_binary(plain(location)) as stream:
        return delimited.dialect_of(bounded.rewindable(stream))


def count_records(location: str | Path) -> int:
    """About how many records a file holds, for progress: a CSV's quoted line breaks count too, and of a text file
    only the first megabyte is read."""
    location = plain(location)
    with open_binary(location) as stream:
        if str(location).lower().endswith(".parquet"):
            import pyarrow.parquet as parquet

            return parquet.ParquetFile(stream).metadata.num_rows
        start = stream.read(1 << 20)
        size = len(start)
        with contextlib.suppress(ValueError):  # a server may not tell it
            size = stream.seek(0, os.SEEK_END)
        return max(1, start.count(b"\n") * size // max(len(start), 1))
