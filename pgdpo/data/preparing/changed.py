"""What is another in the rows of a manifest than it was when they were prepared: texts, labels, files, order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgdpo.config import Config
from pgdpo.data.clips import takes_frames
from pgdpo.data.preparing.made_of import entries, pictures_of
from pgdpo.files.atomic import sha256_of
from pgdpo.files.locations import is_url
from pgdpo.messages.console import progress_bar
from pgdpo.messages.problems import Problem, shown
from pgdpo.rows.manifest import GIVEN, PICTURES, CheckedRow, carried
from pgdpo.rows.ranked import ends
from pgdpo.rows.schema import (
    LABELS,
    MANIFEST,
    SAMPLES,
    cut_labels,
    key_of,
    kind_of,
    place_of,
    said_of,
    samples_of,
    spoken,
    titled,
    worded,
)


@dataclass(frozen=True)
class Difference:
    """One thing that is another than it was when the data were prepared; `problem` says it with its place."""

    kind: str
    problem: Problem


class Rows:
    """The manifest's rows against the index's: `found`, and `notes` of what could not be looked at."""

    def __init__(self, index: Mapping, config: Config, rows: Sequence[CheckedRow], full: bool) -> None:
        self.rows, self.full = rows, full
        self.found: list[Difference] = []
        self.notes: list[str] = []
        self.made = index["made_of"]["pairs"]
        self.recorded = {row["id"]: row for row in index["pairs"]}
        selected = (getattr(rule, "quality", None) for rule in config.data.select)
        labels = {*LABELS, MANIFEST, *selected} - {SAMPLES, None}
        self.labels = [key for key in labels if not key.startswith("sha256_")]
        self.pictures = pictures_of(index)
        known = [entry for pair in self.made.values() for entry in entries(pair).values()]
        self.by_name = {name: digest for name, _, _, digest in known}
        self.known = {(name, size, time): digest for name, size, time, digest in known}
        self.digests: dict[str, str | None] = {}  # by location; None: it is not here

    def compare(self) -> None:
        """Fill `found` and `notes`."""
        found, ids = self.found, [row.values["id"] for row in self.rows]
        there = set(ids)
        for name in self.made:
            if name not in there:
                what = f"{titled(name, self.made[name])} was prepared, and the manifest has no such row that is taken"
                found.append(
                    Difference("row removed", Problem(_file(self.rows), what, "id", name, pair=name))
                )
        common = [row for row in self.rows if row.values["id"] in self.made]
        self._look_at(common)
        for row, extra in zip(self.rows, carried(self.rows), strict=True):
            name = row.values["id"]
            if name not in self.made:
                found.append(_row(row, "row added", f"{_titled(row)} was not prepared", "id", name))
                continue
            found += self._texts(row, extra)
            found += self._files(row)
        self._order([name for name in self.made if name in there], common)

    def _order(self, was: Sequence[str], rows: Sequence[CheckedRow]) -> None:
        for name, row in zip(was, rows, strict=True):
            if row.values["id"] != name:
                what = f"{_titled(row)} stands where `{name}` stood: batches follow the rows' order"
                self.found.append(_row(row, "order of rows", what, "id", row.values["id"]))
                return

    def _texts(self, row: CheckedRow, extra: Mapping) -> Iterator[Difference]:
        was = self.recorded.get(row.values["id"])
        if was is None:
            return  # left out as bad
        extra = cut_labels(extra, was["span"])
        about = _titled(row)
        if row.values["prompt"] != was["prompt"]:
            what = f"{about}: `prompt` is {shown(row.values['prompt'])}, prepared was {shown(was['prompt'])}"
            yield _row(row, "prompt edited", what, "prompt", row.values["prompt"])
        for key in self.labels:
            if extra.get(key) != was.get(key):
                what = f"{about}: `{key}` is {shown(extra.get(key))}, prepared was {shown(was.get(key))}"
                kind = "prompt edited" if key == "caption_rejected" else "label edited"
                yield _row(row, kind, what, key, extra.get(key))
        yield from self._samples(row, extra, was)
        for side in row.sides:
            said, found = extra.get(f"sha256_{side}"), was.get(f"sha256_{side}")
            if None not in (said, found) and said != found:
                named = (
                    f"{about}: `sha256_{side}`" if row.kind == "pair" else f"{_about(row, side)}: `sha256`"
                )
                what = f"{named} is {said[:12]}..., and the clip's is {found[:12]}..."
                yield _row(row, "hash in the row", what, key_of(side, "sha256"), said)

    def _samples(self, row: CheckedRow, extra: Mapping, was: Mapping) -> Iterator[Difference]:
        """What a group says of its samples."""
        samples = samples_of(extra), samples_of(was)
        for side, now, before in zip(
            row.sides, *samples, strict=False
        ):  # one more or less is said of its file
            for key in now | before:
                if now.get(key) != before.get(key):
                    values = f"`{key}` is {shown(now.get(key))}, prepared was {shown(before.get(key))}"
                    what = f"{_about(row, side)}: {values}"
                    kind = "prompt edited" if key == "caption" else "label edited"
                    yield _row(row, kind, what, f"{SAMPLES}.{key}", now.get(key))
        unread = self.made[row.values["id"]].get("unread", ())
        if not all(samples) or not takes_frames(self.pictures, row.clips, unread):
            return
        start, started = ends(extra)[0], ends(was)[0]
        if start != started:
            what = f"{_titled(row)}: a picture is taken of {worded(start)}, prepared was that of {worded(started)}"
            yield _row(row, "picture of a clip", what, SAMPLES, start)

    def _files(self, row: CheckedRow) -> Iterator[Difference]:
        made = self.made[row.values["id"]]
        was = {key: entry[3] for key, entry in entries(made).items() if self._counts(key)}
        now = {key: self.digests[row.clips[key]] or was.get(key) for key in row.clips if self._counts(key)}
        if was == now:
            return
        if kind_of(was) != row.kind:
            what = f"`{row.values['id']}` is a {row.kind}, prepared was a {kind_of(was)}"
            yield _row(row, "pair or group", what, SAMPLES, row.values.get(SAMPLES))
            return
        before, after = (Counter(files.get(side) for side in row.sides) for files in (was, now))
        if before == after and any(was[side] != now[side] for side in row.sides):
            yield _turned(row, made)
            was = was | {side: now[side] for side in row.sides}
        for key in was | now:
            if was.get(key) == now.get(key):
                continue
            about, value = _about(row, key), said_of(row.values, key) if key in now else None
            clip = "clip" if key not in PICTURES else key
            if key not in was or key not in now:
                clip = "sample" if place_of(key) is not None else key
                kind = f"{clip} added" if key not in was else f"{clip} removed"
                what = f"{about} is {value!r}, prepared was {made.get(key, [None])[0]!r}"
            elif row.name_of(key) == made[key][0]:
                kind = f"{clip} replaced"
                what = f"{about}, {value!r}, has other bytes than what was prepared"
            else:
                kind = f"{clip} renamed"
                what = f"{about} is {value!r}, prepared was {made[key][0]!r}, of other bytes"
            yield _row(row, kind, what, key_of(key), value)

    def _counts(self, key: str) -> bool:
        """Whether tensors follow from a file under that key."""
        return key not in PICTURES or key == "mask" or any(GIVEN.get(frame) == key for frame in self.pictures)

    def _look_at(self, rows: Sequence[CheckedRow]) -> None:
        """Fill `digests` for all files of `rows`, and note what could not be looked at."""
        asked = [
            (row.clips[key], row.name_of(key), made[key][0] if key in made else None)
            for row in rows
            for made in [self.made[row.values["id"]]]
            for key in row.clips
            if self._counts(key)
        ]
        absent, remote, unread = 0, 0, {}
        for location, name, before in asked:
            if location in self.digests or location in unread:
                continue
            status = None if is_url(location) else _status(location)
            if status is None:  # a name is all there is to go by
                other = f"not here: {name}"
                self.digests[location] = None if name == before else self.by_name.get(name, other)
                absent, remote = absent + (not is_url(location)), remote + is_url(location)
                continue
            size, time = status
            digest = None if self.full else self.known.get((name, size, time))
            if digest is None:
                unread[location] = name
            else:
                self.digests[location] = digest
        self._read(unread)
        if absent:
            self.notes.append(f"{absent} clips are not here and were not compared")
        if remote:
            self.notes.append(f"{remote} clips lie behind URLs: their names were compared")

    def _read(self, unread: Mapping[str, str]) -> None:
        """Hash the files that have another name, size or time than they had."""
        if not unread:
            return
        with (
            progress_bar("read clips that may have changed", total=len(unread)) as bar,
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        ):
            for location, digest in zip(unread, pool.map(_digest, unread), strict=True):
                self.digests[location] = digest
                bar.advance()
        alike = sum(self.digests[location] == self.by_name.get(name) for location, name in unread.items())
        if alike and not self.full:
            self.notes.append(
                f"{alike} clips have other times than when they were prepared, and the same bytes: `pgdpo prepare` "
                "notes their times, and they need not be read again"
            )


def _titled(row: CheckedRow) -> str:
    return titled(row.values["id"], row.sides)


def _about(row: CheckedRow, key: str) -> str:
    """One of its files, as messages begin with it."""
    return f"{_titled(row)}: `{key}`" if place_of(key) is None else spoken(row.values["id"], row.sides, key)


def _turned(row: CheckedRow, made: Mapping) -> Difference:
    """The same clips in another order."""
    if row.kind == "group":
        what = f"{_titled(row)}: its samples stand in another order"
        return _row(row, "samples in another order", what, SAMPLES, None)
    what = f"{_titled(row)}: `chosen` and `rejected` are swapped: what was chosen is {made['chosen'][0]!r}"
    return _row(row, "chosen and rejected swapped", what, "chosen", row.values["chosen"])


def _digest(location: str) -> str:
    try:
        return sha256_of(Path(location))
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _status(location: str) -> tuple[int, int] | None:
    try:
        found = os.stat(location)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _row(row: CheckedRow, kind: str, what: str, key: str, value: Any) -> Difference:
    return Difference(kind, row.problem(what, key=key, value=value))


def _file(rows: Iterable[CheckedRow]) -> str:
    return next((row.record.file for row in rows), "the manifest")
