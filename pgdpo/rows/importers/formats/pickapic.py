"""Pick-a-Pic v2 (arXiv 2305.01569): Parquet with a caption, two pictures as bytes, and who was preferred."""

from __future__ import annotations

from collections.abc import Iterator

from pgdpo.files.tables import Record
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Options,
    Reading,
    first_of,
    is_missing,
    lacks,
    media_of,
    number,
    ordered,
    read_rows,
    wrong,
)
from pgdpo.rows.schema import TIE


def read(source: str, options: Options) -> Reading:
    return read_rows(source, _row)


def _row(record: Record) -> Iterator[Found | Problem]:
    pictures = [first_of(record, f"jpg_{side}", f"image_{side}_url") for side in (0, 1)]
    for side, picture in enumerate(pictures):
        if picture is None:
            yield lacks(record, f"jpg_{side}", f"image_{side}_url")
            return
    if not isinstance(record.values.get("caption"), str):
        yield lacks(record, "caption")
        return
    labels = [record.values.get(f"label_{side}") for side in (0, 1)]
    first, second = map(number, labels)
    unlabelled = all(map(is_missing, labels)) or record.values.get("has_label") is False
    if unlabelled:
        share = TIE
    elif first is None or second is None or min(first, second) < 0 or first + second <= 0:
        at_fault = "label_0" if first is None or first < 0 else "label_1"
        yield wrong(
            record,
            at_fault,
            record.values.get(at_fault),
            "0, 1, or 0.5 in both for a tie",
            "mend the label, or set has_label to false",
        )
        return
    else:
        share = first / (first + second)
    row, _ = ordered(*(media_of(record, picture[1]) for picture in pictures), share)
    row |= {"prompt": record.values["caption"], "num_frames": 1}
    yield Found(row | ({"weight": 0.0} if unlabelled else {}), record.values)


FORMAT = Format(
    "pickapic",
    "Pick-a-Pic v2: pictures become clips of one frame; rows without a label become ties of weight 0.",
    "Parquet with caption, jpg_0, jpg_1, label_0, label_1 (0.5 in both: a tie); a file or a folder of them",
    read,
    {"caption": "prompt"},
)
