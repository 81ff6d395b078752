"""DenseDPO (arXiv 2506.03517): two aligned clips and a label for each short segment. No file format was published;

this one takes tables with two clips and a list of labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgdpo.files.bounded import parse_json
from pgdpo.files.tables import Record
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Options,
    Reading,
    first_of,
    lacks,
    media_of,
    number,
    ordered,
    read_rows,
    wrong,
)
from pgdpo.rows.schema import TIE

CLIPS = (("chosen", "rejected"), ("video1", "video2"), ("video_0", "video_1"), ("path_A", "path_B"))
LABELS = ("segments", "segment_labels", "labels")
# The first clip's share: as annotators' words, as signs, or as a place.
SHARES = {"A": 1.0, "B": 0.0, "same": TIE, "tie": TIE, 1: 1.0, -1: 0.0, 0: TIE}


def read(source: str, options: Options) -> Reading:
    return read_rows(source, lambda record: _row(record, options.segment_seconds))


def _row(record: Record, seconds: float) -> Iterator[Found | Problem]:
    prompt = first_of(record, "prompt", "caption")
    names = next((pair for pair in CLIPS if first_of(record, pair[0])), CLIPS[0])
    clips = [media_of(record, record.values.get(name)) for name in names]
    labelled = first_of(record, *LABELS)
    for present, wanted in ((prompt, ("prompt", "caption")), (clips[0], names), (clips[1], names[1:])):
        if present is None:
            yield lacks(record, *wanted)
            return
    if labelled is None:
        yield lacks(record, *LABELS)
        return
    key, labels = labelled
    seconds = number(record.values.get("segment_seconds")) or seconds
    pieces = _pieces(labels, seconds)
    if not isinstance(pieces, list):
        allowed = "a list of A | B | same, of 1 | -1 | 0 (first better, second better, tie), or of {start, end, label}"
        yield wrong(record, key, pieces if pieces is not None else labels, allowed, "mend the labels")
        return
    row, swapped = ordered(*clips, sum(share for _, _, share in pieces) / len(pieces))
    row["segments"] = [
        {"start": start, "end": end, "preference": 1 - share if swapped else share}
        for start, end, share in pieces
    ]
    yield Found(row | {"prompt": prompt[1]}, record.values)


def _pieces(labels: Any, seconds: float) -> list[tuple[float, float, float]] | Any:
    """(start, end, the first clip's share) of each segment, or what is wrong among them."""
    if isinstance(labels, str):  # a CSV's field
        try:
            labels = parse_json(labels)
        except ValueError:
            return labels
    if not isinstance(labels, list) or not labels:
        return labels
    pieces = []
    for place, label in enumerate(labels):
        start, end = place * seconds, (place + 1) * seconds
        if isinstance(label, dict):
            start, end = number(label.get("start", start)), number(label.get("end", end))
            share = number(label["preference"]) if "preference" in label else _share(label.get("label"))
        else:
            share = _share(label)
        if None in (start, end, share) or not 0 <= share <= 1 or not start < end:
            return label
        pieces.append((start, end, share))
    return pieces


def _share(label: Any) -> float | None:
    known = isinstance(label, (str, int, float)) and not isinstance(label, bool)
    return SHARES.get(label) if known else None


FORMAT = Format(
    "densedpo",
    "DenseDPO: labels per segment; the clip that wins more segments is the chosen one.",
    "a table with prompt, two clips (chosen/rejected, video1/video2, video_0/video_1 or path_A/path_B) and `segments`: "
    "A | B | same, 1 | -1 | 0, or {start, end, label} each",
    read,
    {"prompt": "prompt", "caption": "prompt"},
)
