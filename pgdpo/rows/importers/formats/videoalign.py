"""VideoAlign (arXiv 2501.13918): a CSV of two clips judged A, B or same by visual and motion quality and text."""

from __future__ import annotations

from collections.abc import Iterator

from pgdpo.files.tables import Record
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Options,
    Reading,
    is_missing,
    lacks,
    media_of,
    number,
    ordered,
    read_rows,
    whole,
    wrong,
)
from pgdpo.rows.schema import TIE

DIMENSIONS = (
    "VQ",
    "MQ",
    "TA",
    "Overall",
)  # visual quality, motion quality, text alignment; as benchmarks add
SHARES = {"A": 1.0, "B": 0.0, "same": TIE}  # of clip A


def read(source: str, options: Options) -> Reading:
    if options.dimension not in (None, *DIMENSIONS):
        raise InputError(f"--dimension is {options.dimension!r}; allowed: {', '.join(DIMENSIONS)}")
    return read_rows(source, lambda record: _rows(record, options.dimension))


def _rows(record: Record, only: str | None) -> Iterator[Found | Problem]:
    """One row per judged dimension; a line without any becomes one tie of weight 0."""
    values = record.values
    for key in ("path_A", "path_B", "prompt"):
        if not isinstance(values.get(key), str) or (key != "prompt" and not values[key]):
            yield lacks(record, key)
            return
    shares = {}
    for name in DIMENSIONS:
        label = values.get(name)
        if is_missing(label):
            continue
        if label not in SHARES:
            yield wrong(
                record, name, label, ", ".join(SHARES), "mend the label, or leave it empty if nobody judged"
            )
            return
        shares[name] = SHARES[label]
    clips = [media_of(record, values[f"path_{side}"]) for side in "AB"]
    common = {"prompt": values["prompt"], **_alike(values)}
    if not shares:
        yield Found({**ordered(*clips, TIE)[0], **common, "weight": 0.0}, values)
    for name in [name for name in shares if only in (None, name)]:
        row, swapped = ordered(*clips, shares[name])
        dimensions = {each: 1 - share if swapped else share for each, share in shares.items()}
        yield Found({**row, **common, "dimension": name, "dimensions": dimensions}, values)


def _alike(values: dict) -> dict:
    """fps and num_frames where both clips have the same."""
    row = {}
    for key, parse in (("fps", number), ("num_frames", whole)):
        first, second = (parse(values.get(f"{key}_{side}")) for side in "AB")
        if first is not None and first == second and first > 0:
            row[key] = first
    return row


FORMAT = Format(
    "videoalign",
    "VideoAlign: one row per dimension (VQ, MQ, TA); all dimensions stand in each. --dimension takes one only.",
    "CSV with path_A, path_B, prompt, VQ, MQ, TA (A, B or same)",
    read,
    {"prompt": "prompt"},
)
