"""A manifest: pairs or groups as JSONL or Parquet, on disk or behind a URL. What a row holds: `schema.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pgdpo.files.locations import clip_location, fetch, folder_of, is_file, is_url, plain
from pgdpo.files.tables import Record, read_records
from pgdpo.messages.problems import Problem, raise_errors, shown
from pgdpo.rows import schema
from pgdpo.rows.schema import (
    MANIFEST,
    REQUIRED,
    SAMPLES,
    TIE,
    key_of,
    kind_of,
    said_of,
    samples_of,
    sides_of,
    spoken,
)

GIVEN = {0: "image", -1: "last_image"}  # frame of the clips -> key of a row that names its picture
PICTURES = ("mask", *GIVEN.values())  # keys of a row that name a file beside its clips
SPAN_MARK = "~"  # between a row's id and the number of its span
FETCHES = 16  # clips that are downloaded at a time
MOST_BAD_ROWS = 100_000  # after which reading stops: their problems are kept, about 1 kB each


@dataclass(frozen=True)
class PairRow:
    """One row of a manifest, a pair or a group. `extra` holds its other keys, and the columns that follow from them."""

    id: str
    prompt: str
    clips: dict[str, Path]  # by side, as `schema.sides_of` has them
    mask: Path | None = None  # where the clips differ, and
    image: Path | None = None  # what generation starts from, where the row says it, and
    last_image: Path | None = None  # what it ends with
    extra: dict = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)  # the files, as `CheckedRow.name_of` names them

    @property
    def kind(self) -> str:
        """`pair` or `group`."""
        return kind_of(self.clips)

    @property
    def files(self) -> dict[str, Path]:
        """Its clips by side, and those of `PICTURES` that there are."""
        return self.clips | {key: file for key in PICTURES if (file := getattr(self, key)) is not None}


@dataclass(frozen=True)
class CheckedRow:
    """A row as it stands in the file, where it stands, and where its clips lie (paths or URLs)."""

    record: Record
    clips: dict[str, str]  # by side, and those of `PICTURES` that there are
    manifest_name: str | None = None  # name of the one that it comes from, where there are several

    @property
    def values(self) -> dict[str, Any]:
        return self.record.values

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of its clips."""
        return sides_of(self.values)

    @property
    def kind(self) -> str:
        """`pair` or `group`."""
        return kind_of(self.sides)

    def name_of(self, key: str) -> str:
        """One of its files, as the row names it; two manifests may give the same name to different files."""
        name = said_of(self.values, key)
        return name if self.manifest_name is None else f"{self.manifest_name}: {name}"

    def problem(self, what: str, **parts) -> Problem:
        """A Problem of this row."""
        return self.record.problem(what, pair=self.values["id"], **parts)


def pair_rows(rows: Sequence[CheckedRow]) -> list[PairRow]:
    """The rows with their clips on this machine: remote ones are fetched to a local cache.

    Raises InputError for one that cannot be fetched.
    """
    local = _local([location for row in rows for location in row.clips.values()])
    return [
        PairRow(
            row.values["id"],
            row.values["prompt"],
            {side: local[row.clips[side]] for side in row.sides},
            *(local.get(row.clips.get(key)) for key in PICTURES),
            extra,
            {key: row.name_of(key) for key in row.clips},
        )
        for row, extra in zip(rows, carried(rows), strict=True)
    ]


def decided_rows(rows: list[CheckedRow], ties: Literal["drop", "keep"]) -> list[CheckedRow]:
    """The rows that `data.ties` leaves."""
    return rows if ties == "keep" else [row for row in rows if row.values.get("preference") != TIE]


def spread(rows: list[CheckedRow], spans: int) -> list[CheckedRow]:
    """Each row `spans` times, one for each span of its clips that is taken: `id~1`, `id~2`, ... (`data.clip`).

    Raises InputError where another row has such an id.
    """
    if spans == 1:
        return rows
    several = [
        replace(
            row,
            record=replace(row.record, values={**row.values, "id": f"{row.values['id']}{SPAN_MARK}{number}"}),
        )
        for row in rows
        for number in range(1, spans + 1)
    ]
    there = {row.values["id"] for row in rows}
    raise_errors(
        [
            row.problem(
                f"id `{row.values['id']}` stands in the manifest, and data.clip makes it of another row",
                key="id",
                value=row.values["id"],
                allowed=f"ids that do not end in {SPAN_MARK} and a number",
                suggestion="give the row another id",
            )
            for row in several
            if row.values["id"] in there
        ]
    )
    return several


def carried(rows: Sequence[CheckedRow]) -> list[dict]:
    """What stands in the index of each row beside id, prompt and clips: its other keys, the columns that follow from
    them and, where there are several, the name of its manifest."""
    derived = [schema.columns(row.values) for row in rows]
    certain = {"probability": 1.0} if any("probability" in columns for columns in derived) else {}
    return [
        _extra(row.values, {**certain, **columns})
        | ({MANIFEST: row.manifest_name} if row.manifest_name else {})
        for row, columns in zip(rows, derived, strict=True)
    ]


def _extra(values: dict, derived: dict) -> dict:
    """The row's own keys over those that follow from them; the importers' `source_fields` stay in the manifest. What
    a group says of its samples' bytes stands as a pair says it: under `sha256_<side>`."""
    kept = {
        key: value
        for key, value in values.items()
        if key not in (*REQUIRED, SAMPLES, "source_fields") and value is not None
    }
    if values.get(SAMPLES) is not None:
        hashes = {f"sha256_{side}": said_of(values, side, "sha256") for side in sides_of(values)}
        kept |= {SAMPLES: samples_of(values)} | {
            key: said for key, said in hashes.items() if said is not None
        }
    return {**derived, **kept}


def _local(clips: list[str]) -> dict[str, Path]:
    remote = sorted({clip for clip in clips if is_url(clip)})
    with ThreadPoolExecutor(FETCHES) as pool:
        fetched = dict(zip(remote, pool.map(fetch, remote), strict=True))
    return {clip: fetched.get(clip) or Path(clip) for clip in clips}


def scan_manifest(
    path: str | Path, media_root: Path | None = None, *, clips_there: bool = True
) -> tuple[list[CheckedRow], list[Problem]]:
    """(the rows without errors, everything that is wrong with the others, the file and its names).

    `clips_there`: a clip that is not there is an error.

    Found: a file that is missing, unreadable or empty; lines that are no JSON object; keys that are missing,
    double, of the wrong kind or out of range; ids used twice; clips that are not there or lie outside; records and
    files beyond the sizes of `bounded.py`.
    """
    path = plain(path)
    rows: list[CheckedRow] = []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    empty, bad = True, 0
    for item in _records(path):
        empty = False
        if bad == MOST_BAD_ROWS:
            what = f"{bad:,} rows are bad: the rest isn't read"
            problems.append(Problem(str(path), what, allowed="good rows", suggestion="mend these first"))
            break
        if isinstance(item, Problem):
            problems.append(item)
            bad += 1
            continue
        found = [problem_of(item, flaw, _name(item)) for flaw in schema.flaws(item.values)]
        found += _repeated(item, seen)
        clips, missing = _clips(item, media_root, clips_there)
        found += missing
        problems += found
        if any(problem.severity == "error" for problem in found):
            bad += 1
        else:
            rows.append(CheckedRow(item, clips))
    rows, mixed = of_one_kind(rows)
    problems += mixed
    if empty:
        needed = f"one JSON object a line with {', '.join(REQUIRED)}"
        problems.append(
            Problem(
                str(path),
                "the manifest is empty",
                allowed=needed,
                suggestion="add rows, or see `pgdpo import`",
            )
        )
    return rows, problems


def of_one_kind(rows: list[CheckedRow], kind: str | None = None) -> tuple[list[CheckedRow], list[Problem]]:
    """(the rows that are of the `kind`, by default the first one's, a Problem where there are others)."""
    kind = kind or (rows[0].kind if rows else "")
    others = [row for row in rows if row.kind != kind]
    if not others:
        return rows, []
    name = others[0].values["id"]
    problem = others[0].problem(
        f"`{name}` is a {others[0].kind}, the first of {len(others)}, and the rows before are {kind}s",
        key=SAMPLES,
        allowed="pairs alone, or groups alone",
        suggestion="write each pair as a group: its clips as two samples, with `rank` 0 and 1",
    )
    return [row for row in rows if row.kind == kind], [problem]


def _records(path: str | Path) -> Iterator[Record | Problem]:
    """The file's records; what keeps it from being read is a Problem too."""
    kinds = "a JSONL or Parquet file, on disk or behind a URL"
    try:
        yield from read_records(path)
    except FileNotFoundError:
        yield Problem(
            str(path), "no such manifest", "data.train", str(path), kinds, "mend the path, or write `toy`"
        )
    except IsADirectoryError:
        yield Problem(
            str(path),
            "is a folder",
            "data.train",
            str(path),
            kinds,
            "name the manifest in it, or `pgdpo import`",
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        what, mend = f"cannot be read ({reason[:300]})", "mend the path or URL, or write the file again"
        yield Problem(str(path), what, "data.train", str(path), kinds, mend)


def problem_of(record: Record, flaw: schema.Flaw, pair: str) -> Problem:
    """What is wrong with a row, said of the place that it was read from."""
    return record.problem(
        flaw.what,
        key=flaw.key,
        value=flaw.value,
        allowed=flaw.allowed,
        suggestion=flaw.suggestion,
        severity=flaw.severity,
        pair=pair,
    )


def _repeated(record: Record, seen: dict[str, str]) -> list[Problem]:
    """A Problem if the row's id was used before."""
    name = _name(record)
    if not name:
        return []
    place = f"line {record.line}" if record.line is not None else f"row {record.row}"
    first = seen.setdefault(name, place)
    return [] if first == place else [id_problem(record, first)]


def id_problem(record: Record, first: str) -> Problem:
    """Its id stands at the place `first` already."""
    return record.problem(
        f"id `{_name(record)}` stands on {first} already",
        key="id",
        value=_name(record),
        allowed="each id once: it fixes a pair's timesteps and noise",
        suggestion="give this row another id, or remove it",
        pair=_name(record),
    )


def _clips(record: Record, media_root: Path | None, there: bool) -> tuple[dict[str, str], list[Problem]]:
    folder = folder_of(record.file)
    clips, problems = {}, []
    sides = sides_of(record.values)
    for key in (*sides, *PICTURES):
        value = said_of(record.values, key)
        if value is None or not schema.CLIP.accepts(value):
            continue  # said already
        what = f"{spoken(_name(record), sides, key)} is {shown(value)}"
        parts = {"key": key_of(key), "value": value, "pair": _name(record)}
        try:
            location = clip_location(value, folder, media_root)
        except ValueError as error:
            outside = "leaves" in str(error)
            mend = "name a file or an https:// URL"
            if outside:
                mend = "set data.media_root to the folder that holds the clips, if they are yours"
            allowed = "a path relative to the manifest, in its folder or below data.media_root, or a URL"
            problems.append(record.problem(f"{what}: {error}", allowed=allowed, suggestion=mend, **parts))
            continue
        clips[key] = location
        if there and not is_file(location):
            allowed = "paths are relative to the manifest"
            mend = "mend the path, fetch the clip, or leave the row out"
            problems.append(
                record.problem(f"{what}: no file at {location}", allowed=allowed, suggestion=mend, **parts)
            )
    return clips, problems


def _name(record: Record) -> str:
    name = record.values.get("id")
    return name if isinstance(name, str) else ""
