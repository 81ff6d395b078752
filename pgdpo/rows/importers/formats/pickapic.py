"""Pick-a-Pic v2 (arXiv 2305.01569): Parquet with a caption, two pictures as bytes, and who was preferred."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgdpo.files.tables import Record
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Media,
    Options,
    Reading,
    first_of,
    is_missing,
    lacks,
    media_of,
    number,
    ordered,
    read_rows,
    records_of,
    tables_of,
    wrong,
)
from pgdpo.rows.importers.groups import grouped, ranks_by
from pgdpo.rows.schema import TIE

IN_MEMORY = 1 << 28  # bytes of pictures that wait for their groups; more wait in a file
PICTURES = ("jpg_0", "jpg_1")


def read(source: str, options: Options) -> Reading:
    return _groups(source) if options.groups else read_rows(source, _row)


def _row(record: Record) -> Iterator[Found | Problem]:
    compared = _compared(record)
    if isinstance(compared, Problem):
        yield compared
        return
    pictures, share = compared
    row, _ = ordered(*pictures, TIE if share is None else share)
    row |= {"prompt": record.values["caption"], "num_frames": 1}
    yield Found(row | ({"weight": 0.0} if share is None else {}), record.values)


def _compared(record: Record) -> tuple[list[Media], float | None] | Problem:
    """(both pictures, the first's share of the votes, None where nobody judged), or what is wrong."""
    pictures = [first_of(record, f"jpg_{side}", f"image_{side}_url") for side in (0, 1)]
    for side, picture in enumerate(pictures):
        if picture is None:
            return lacks(record, f"jpg_{side}", f"image_{side}_url")
    if not isinstance(record.values.get("caption"), str):
        return lacks(record, "caption")
    media = [media_of(record, picture[1]) for picture in pictures]
    labels = [record.values.get(f"label_{side}") for side in (0, 1)]
    first, second = map(number, labels)
    if all(map(is_missing, labels)) or record.values.get("has_label") is False:
        return media, None
    if first is None or second is None or min(first, second) < 0 or first + second <= 0:
        at_fault = "label_0" if first is None or first < 0 else "label_1"
        return wrong(
            record,
            at_fault,
            record.values.get(at_fault),
            "0, 1, or 0.5 in both for a tie",
            "mend the label, or set has_label to false",
        )
    return media, first / (first + second)


def _groups(source: str) -> Reading:
    """A row of all pictures of one caption that one user's comparisons connect, each picture once.

    Pictures that were shown for it and judged by nobody are a row of their own, of weight 0.
    """
    waiting, problems = _Waiting(), []
    shown: dict[tuple[str, str], _Shown] = {}
    for item in records_of(tables_of(source)):
        compared = item if isinstance(item, Problem) else _compared(item)
        if isinstance(compared, Problem):
            problems.append(compared)
            continue
        prompt = item.values["caption"]
        asked = shown.setdefault((prompt, str(item.values.get("user_id"))), _Shown(prompt))
        asked.add(item, *compared, waiting)
    ranked = [(each, ranks) for each in shown.values() for ranks in each.ranked()]
    rows = [(each, ranks) for each, ranks in ranked if len(ranks) > 1]
    alone = len(ranked) - len(rows)
    left_over = (
        [f"{alone} pictures were judged by nobody, and stand alone for their caption"] if alone else []
    )

    def found() -> Iterator[Found | Problem]:
        with waiting:
            yield from problems
            for each, ranks in rows:
                yield each.group(ranks)

    return Reading(len(problems) + len(rows), found(), left_over)


class _Waiting(contextlib.AbstractContextManager):
    """Pictures until their groups are whole: comparisons of one caption may stand far apart."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115  (closed by `__exit__`)

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, media: Media) -> Callable[[], Media]:
        """What gives the picture back."""
        if isinstance(media.content, str):
            return lambda: media
        start, size, folder = self._file.seek(0, os.SEEK_END), len(media.content), media.folder
        self._file.write(media.content)
        return lambda: Media(self._read(start, size), folder)

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)


@dataclass(frozen=True)
class _Picture:
    media: Callable[[], Media]
    fields: dict[str, Any]  # what the source says of it alone


@dataclass
class _Shown:
    """What one user was shown for one caption: pictures by uid, and what was said of each two."""

    prompt: str
    pictures: dict[str, _Picture] = field(default_factory=dict)
    comparisons: list[tuple[str, str, float | None, dict[str, Any]]] = field(default_factory=list)

    def add(self, record: Record, media: list[Media], share: float | None, waiting: _Waiting) -> None:
        values, uids = record.values, []
        for side, each in enumerate(media):
            columns = {
                "image_uid": f"image_{side}_uid",
                "image_url": f"image_{side}_url",
                "model": f"model_{side}",
            }
            fields = {key: values.get(column) for key, column in columns.items()}
            content = each.content if isinstance(each.content, bytes) else each.content.encode()
            uids.append(str(fields["image_uid"] or hashlib.sha256(content).hexdigest()))
            if uids[-1] not in self.pictures:
                self.pictures[uids[-1]] = _Picture(waiting.put(each), fields)
        rest = {key: value for key, value in values.items() if key not in PICTURES}
        self.comparisons.append((*uids, share, rest))

    def ranked(self) -> list[dict[str, int]]:
        """Ranks by uid of each group; of those that nobody judged, 0."""
        judged = ranks_by((a, b, share) for a, b, share, _ in self.comparisons if share is not None)
        unjudged = dict.fromkeys(self.pictures, 0)
        for uid in itertools.chain.from_iterable(judged):
            del unjudged[uid]
        return [*judged, *([unjudged] if unjudged else [])]

    def group(self, ranks: Mapping[str, int]) -> Found:
        pictures = [self.pictures[uid] for uid in ranks]
        samples = [
            {
                "clip": picture.media(),
                "rank": rank,
                "source": picture.fields["model"] or None,
                "source_fields": picture.fields,
            }
            for picture, rank in zip(pictures, ranks.values(), strict=True)
        ]
        found = grouped(self.prompt, samples)
        compared = [each for each in self.comparisons if ranks.keys() & set(each[:2])]
        judged = any(share is not None and a != b and {a, b} <= ranks.keys() for a, b, share, _ in compared)
        found.row |= {"num_frames": 1} | ({} if judged else {"weight": 0.0})
        found.fields["comparisons"] = [fields for *_, fields in compared]
        return found


FORMAT = Format(
    "pickapic",
    "Pick-a-Pic v2: pictures become clips of one frame; rows without a label become ties of weight 0. --groups: all "
    "pictures of one caption and user, ranked by who beat whom.",
    "Parquet with caption, jpg_0, jpg_1, label_0, label_1 (0.5 in both: a tie); a file or a folder of them",
    read,
    {"caption": "prompt"},
    lists=True,
)
