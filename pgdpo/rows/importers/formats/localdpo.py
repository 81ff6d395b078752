"""LocalDPO: a real clip, the same clip with a region made anew, and the region's mask."""

from __future__ import annotations

from collections.abc import Iterator

from pgdpo.files.tables import Record
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import Format, Found, Options, Reading, first_of, lacks, media_of, read_rows

COLUMNS = {
    "prompt": ("prompt", "caption"),
    "chosen": ("chosen", "real", "video", "path"),
    "rejected": ("rejected", "corrupted", "generated", "negative"),
    "mask": ("mask", "mask_path", "masks"),
}


def read(source: str, options: Options) -> Reading:
    return read_rows(source, _row)


def _row(record: Record) -> Iterator[Found | Problem]:
    row = {"preference": 1.0, "chosen_is_real": True}
    for key, names in COLUMNS.items():
        found = first_of(record, *names)
        value = found and (found[1] if key == "prompt" else media_of(record, found[1]))
        if value is None:
            yield lacks(record, *names)
            return
        row[key] = value
    real = record.values.get("chosen_is_real")
    yield Found(row | ({"chosen_is_real": real} if isinstance(real, bool) else {}), record.values)


FORMAT = Format(
    "localdpo",
    "LocalDPO: a real clip against one with a region made anew, and the region's mask.",
    "a table with prompt, chosen (or real, video), rejected (or corrupted, generated), mask",
    read,
    {"prompt": "prompt", "caption": "prompt", "chosen_is_real": "chosen_is_real"},
)
