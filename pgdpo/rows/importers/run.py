"""An import: the format's rows, their media put in place, one manifest that appears when all is well."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import hashlib
import math
import ntpath
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgdpo.files.atomic import atomic_path, sha256_of
from pgdpo.files.locations import (
    CLIP_SCHEMES,
    fetch,
    folder_of,
    is_file,
    is_of_a_home,
    is_url,
    plain,
    write_bytes,
)
from pgdpo.files.tables import Record, writer
from pgdpo.messages.console import progress_bar
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, raise_errors, shown
from pgdpo.rows.importers.format import Format, Found, Media, Options
from pgdpo.rows.manifest import MOST_BAD_ROWS, PICTURES, problem_of
from pgdpo.rows.schema import KEYS, SIDES, TIE, flaws

MEDIA_KEYS = (*SIDES, *PICTURES)
STARTS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"\x1aE\xdf\xa3": ".mkv"}


@dataclass
class Summary:
    """What an import did; `left_over` and `missing` say what a reader should look at."""

    rows: int = 0
    sizes: set[int] = field(default_factory=set)  # numbers of samples of the rows that are groups
    ties: int = 0
    weightless: int = 0  # rows of weight 0: nobody judged them
    dropped: int = 0  # records that gave no row: only where an option asked for some of them
    media: int = 0  # files written
    missing: list[str] = field(default_factory=list)  # local clips that are not there
    by_name: set[str] = field(
        default_factory=set
    )  # clips of another machine's paths that were found beside the source
    outside: str | None = None  # the folder that clips outside the manifest's lie in
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def import_data(
    form: Format,
    source: str,
    out: str,
    options: Options | None = None,
    *,
    name: str | None = None,
    licence: str | None = None,
    copy: bool = False,
) -> Summary:
    """Write a manifest `out` (JSONL or Parquet, path or URL) with all pairs, or groups, of `source`.

    Every field of the source stands in its row: under a native key, or in `source_fields`. Clips that the source
    names stay where they are; bytes (and with `copy` all clips) are written beside the manifest by their hash.

    `name`, `licence`: the rows' `source` (by default the format's name) and `licence`. A row that has no id is named
    after `name` and the source's file, so that several imports can be used together.
    Raises InputError, with all problems, before anything is left on disk.
    """
    source, out = str(plain(source)), str(plain(out))
    if not is_url(out) and Path(out).resolve() == Path(source).resolve():
        raise InputError(f"OUT is {out}, the source itself: name another file")
    options = options or Options()
    _check_groups(form, options)
    reading = form.read(source, options)
    summary, problems, ids = Summary(), [], Counter()
    prefix = (
        f"{name or form.name}-{hashlib.sha256(Path(source).name.encode('utf-8', 'replace')).hexdigest()[:6]}"
    )
    with contextlib.ExitStack() as undo:
        store = _Store(out, copy, summary)
        undo.callback(store.remove_written)
        with progress_bar(f"import {form.name}", total=reading.total) as bar, writer(out) as write:
            for item in reading.found:
                if isinstance(item, Found):
                    wanted = item.row.get("id") or f"{prefix}-{summary.rows:07d}"
                    item.row = {**item.row, "id": _unused(wanted, ids)}
                row = item if isinstance(item, Problem) else _native(form, item, store)
                if len(problems) >= MOST_BAD_ROWS:
                    what = f"{len(problems):,} errors: the rest isn't read"
                    problems.append(Problem(source, what, allowed="good rows", suggestion="mend these first"))
                    break
                if isinstance(row, Problem):
                    problems.append(row)
                    continue
                row |= {"source": name or form.name, **({"licence": licence} if licence else {})}
                row["source_fields"] = row.pop("source_fields")  # last: it may be long
                errors = [flaw for flaw in flaws(row) if flaw.severity == "error"]
                place = item.record or Record(source, {})
                problems += [problem_of(place, flaw, row["id"]) for flaw in errors]
                if not errors:  # what is wrong may be what cannot be written
                    write(row)
                summary.rows += 1
                samples = row.get("samples", ())
                summary.sizes |= {len(samples)} if samples else set()
                summary.ties += row.get("preference") == TIE or _are_tied(samples)
                summary.weightless += row.get("weight") == 0
                bar.advance()
            raise_errors(problems, beside=out)
            if not summary.rows:
                unit = "group" if options.groups else "pair"
                left = "".join(f" ({each})" for each in reading.left_over)
                raise InputError(f"{source}: no {unit} in it{left}; {form.name} reads {form.layout}")
            bar.finish()
        undo.pop_all()
    summary.dropped, summary.left_over, summary.notes = reading.dropped, reading.left_over, reading.notes
    summary.outside = store.outside
    return summary


def _check_groups(form: Format, options: Options) -> None:
    if options.groups and not form.lists:
        raise InputError(
            f"--groups is for formats that hold lists; {form.name} reads {form.layout}: leave it out"
        )
    if options.groups and options.pairs is not None:
        raise InputError(
            f"--groups and --pairs {options.pairs} exclude each other: a row of all clips of a prompt, or pairs of them"
        )


def _are_tied(samples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a group of several ranks none above another."""
    return len(samples) > 1 and len({sample.get("rank") for sample in samples}) == 1


def _native(form: Format, found: Found, store: _Store) -> dict[str, Any] | Problem:
    row = {key: value for key, value in found.row.items() if value is not None}
    try:
        for key in MEDIA_KEYS:
            if key in row:
                row[key], digest = store.place(row[key])
                if digest and f"sha256_{key}" in KEYS:
                    row[f"sha256_{key}"] = digest
        if "samples" in row:
            row["samples"] = _placed(row["samples"], store)
        fields = {str(key): store.as_json(value) for key, value in found.fields.items()}
    except ValueError as error:
        folder, what = error.args
        return (found.record or Record(folder, {})).problem(
            what,
            allowed=f"a path of one clip, or a URL of {', '.join(CLIP_SCHEMES)}",
            suggestion="mend the source",
        )
    kept = {
        key: value
        for key, value in fields.items()
        if form.renames.get(key) not in row or value != row[form.renames[key]]
    }
    return {**row, "source_fields": kept}


def _placed(samples: Sequence[Mapping[str, Any]], store: _Store) -> list[dict[str, Any]]:
    """A group's samples with what they hold in place; a digest of each clip, where the bytes of all were seen."""
    placed = [store.place(sample["clip"]) for sample in samples]
    digests = [digest for _, digest in placed]
    return [
        {
            **sample,
            "clip": clip,
            **({"sha256": digest} if None not in digests else {}),
            "source_fields": store.as_json(sample["source_fields"]),
        }
        for sample, (clip, digest) in zip(samples, placed, strict=True)
    ]


def _unused(name: str, ids: Counter[str]) -> str:
    """`name`, with a number behind it if a row has it already; `ids`: how often each was asked for."""
    unused = name
    while unused in ids:
        ids[name] += 1
        unused = f"{name}#{ids[name]}"
    ids[unused] += 1
    return unused


class _Store:
    """Where the media of a manifest `out` lie, as its rows name them."""

    def __init__(self, out: str, copy: bool, summary: Summary) -> None:
        self.folder, self.copy, self.summary = folder_of(out), copy, summary
        self.name = f"{Path(out).stem}.media"
        self.written: list[str] = []
        self.by_name: dict[str, str] = {}  # files that were found by a path's last parts -> that path
        self.outside: str | None = None

    def place(self, media: Media) -> tuple[str, str | None]:
        """(path relative to the manifest or URL, SHA-256 where the bytes were seen). Raises ValueError."""
        if isinstance(media.content, bytes):
            return self._put(media.content)
        location = self._found(media)
        if is_url(location):
            return self._copied(fetch(location)) if self.copy else (location, None)
        if not is_file(location):
            self.summary.missing.append(location)
        elif self.copy:
            return self._copied(Path(location))
        if is_url(self.folder):
            raise ValueError(location, "the clip is local and the manifest is not: give --copy")
        relative = os.path.relpath(location, self.folder)
        if relative.startswith(".."):
            folder = os.path.dirname(os.path.abspath(location))
            self.outside = os.path.commonpath([self.outside or folder, folder])
        return Path(relative).as_posix(), None

    def _found(self, media: Media) -> str:
        """Its path or URL; of another machine's path by its last parts, which two paths may share: a ValueError."""
        location, by_name = _find(media)
        if by_name:
            other = self.by_name.setdefault(location, str(media.content))
            if other != media.content:
                what = (
                    f"{shown(other)} and {shown(media.content)} are not there, and {location} may be either"
                )
                raise ValueError(media.folder, what)
            self.summary.by_name.add(location)
        return location

    def as_json(self, value: Any) -> Any:
        """A source's value as JSON types: bytes become a file's path, dates text, NaN null."""
        if isinstance(value, bytes):
            return self._put(value)[0]
        if isinstance(value, Mapping):
            return {str(key): self.as_json(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.as_json(each) for each in value]
        if isinstance(value, float):
            return None if math.isnan(value) else value if math.isfinite(value) else str(value)
        if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
            return value.isoformat()
        if isinstance(value, (datetime.timedelta, decimal.Decimal, uuid.UUID)):
            return str(value)
        return value

    def remove_written(self) -> None:
        """Undo what this import wrote, and the folders that are empty then."""
        for location in self.written:
            if is_url(location):
                import fsspec

                filesystem, path = fsspec.url_to_fs(location)
                filesystem.rm(path)
            else:
                Path(location).unlink(missing_ok=True)
                for folder in Path(location).parents[:2]:  # <OUT>.media/ab
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def _put(self, content: bytes) -> tuple[str, str]:
        digest = hashlib.sha256(content).hexdigest()
        ending = next((each for start, each in STARTS.items() if content.startswith(start)), "")
        if content[4:8] == b"ftyp":
            ending = ".mp4"
        elif content[:4] == b"RIFF":
            ending = ".webp" if content[8:12] == b"WEBP" else ".avi"
        relative = f"{self.name}/{digest[:2]}/{digest}{ending}"
        location = f"{self.folder}/{relative}"
        if not _is_there(location):
            write_bytes(location, content)
            self.written.append(location)
            self.summary.media += 1
        return relative, digest

    def _copied(self, path: Path) -> tuple[str, str]:
        if is_url(self.folder):
            return self._put(path.read_bytes())
        digest = sha256_of(path)
        relative = f"{self.name}/{digest[:2]}/{digest}{path.suffix.lower()}"
        target = Path(self.folder) / relative
        if not target.is_file():
            with atomic_path(target) as temporary:
                shutil.copyfile(path, temporary)
            self.written.append(str(target))
            self.summary.media += 1
        return relative, digest


def _is_there(location: str) -> bool:
    if not is_url(location):
        return Path(location).is_file()
    import fsspec

    filesystem, path = fsspec.url_to_fs(location)
    return filesystem.exists(path)


def _find(media: Media) -> tuple[str, bool]:
    """(the clip's path or URL, whether it was found by its last parts beside the source, as another machine's path)."""
    name = str(media.content)
    if any(ord(letter) < 32 for letter in name):
        raise ValueError(media.folder, f"{shown(name)} is no path: it holds a control character")
    name = name.removeprefix("file://")
    if is_of_a_home(name) and not os.path.exists(os.path.join(media.folder, name)):
        raise ValueError(media.folder, f"{shown(name)} begins with `~`: a row's path is relative to its file")
    if is_url(name):
        if name.split("://")[0].lower() not in CLIP_SCHEMES or "::" in name:
            raise ValueError(media.folder, f"{shown(name)} is of no scheme that clips are read from")
        return name, False
    if is_url(media.folder):
        beside = "/".join(Path(name).parts[-2:]) if os.path.isabs(name) else os.path.normpath(name)
        return f"{media.folder}/{beside}", os.path.isabs(name)
    is_absolute = os.path.isabs(name) or ntpath.isabs(name)
    first = os.path.normpath(os.path.join(media.folder, name))
    if "\\" in name and not os.path.isfile(first):  # of Windows
        name = ntpath.splitdrive(name)[1].replace("\\", "/")
        first = os.path.normpath(os.path.join(media.folder, name))
    if is_absolute and not os.path.isfile(first):
        parts = Path(name).parts
        for tail in (parts[-2:], parts[-1:]):
            beside = os.path.join(media.folder, *tail)
            if os.path.isfile(beside):
                return beside, True
    return first, False
