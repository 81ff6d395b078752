"""TRL's preference rows (prompt, chosen, rejected) and its unpaired ones for KTO (prompt, completion, label)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgdpo.files.tables import Record
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Media,
    Options,
    Reading,
    lacks,
    media_of,
    number,
    read_rows,
    scored,
    wrong,
)

LABELS = {
    True: True,
    False: False,
    "True": True,
    "False": False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
}


def read(source: str, options: Options) -> Reading:
    return read_rows(source, _row)


def _row(record: Record) -> Iterator[Found | Problem]:
    values = record.values
    prompt = _text(values.get("prompt")) or _text(values.get("chosen"), role="user")
    if prompt is None:
        yield lacks(record, "prompt")
        return
    row: dict[str, Any] = {"prompt": prompt}
    if isinstance(values.get("id"), str) and values["id"]:
        row["id"] = values["id"]
    if values.get("completion") is not None:
        yield _unpaired(record, row)
        return
    for side in ("chosen", "rejected"):
        row[side] = _clip(record, values.get(side))
        if row[side] is None:
            yield lacks(record, side) if values.get(side) is None else _no_clip(record, side)
            return
    scores = [number(values.get(f"score_{side}")) for side in ("chosen", "rejected")]
    if None not in scores:
        row |= scored({"score": scores[0]}, {"score": scores[1]}, "score")
    yield Found(row, values)


def _unpaired(record: Record, row: dict[str, Any]) -> Found | Problem:
    """A single rated clip: it stands on both sides, and `label` says which of them counts, and how."""
    label = record.values.get("label")
    if not isinstance(label, (bool, str, int)) or label not in LABELS:
        return wrong(record, "label", label, "true or false", "mend the label")
    clip = _clip(record, record.values["completion"])
    if clip is None:
        return _no_clip(record, "completion")
    return Found(
        row | {"chosen": clip, "rejected": clip, "label": [1, 0] if LABELS[label] else [0, -1]}, record.values
    )


def _no_clip(record: Record, key: str) -> Problem:
    allowed = 'a path, a URL, {"path" or "bytes"}, or messages that hold one'
    return wrong(record, key, record.values[key], allowed, "name the clip")


def _clip(record: Record, value: Any) -> Media | None:
    """The clip itself, or that of a conversation's last message."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", value[-1])
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") in ("video", "image")]
        value = next((part.get(part["type"]) or part for part in parts), None)
    return media_of(record, value)


def _text(value: Any, role: str | None = None) -> str | None:
    """Plain text, or that of a conversation's last message (of one role)."""
    if isinstance(value, str):
        return value if role is None else None
    if not isinstance(value, list):
        return None
    texts = []
    for message in value:
        if isinstance(message, dict) and role in (None, message.get("role")):
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts += [
                part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
            ]
    return texts[-1] if texts else None


FORMAT = Format(
    "trl",
    "TRL: pairs, plain or as messages; KTO's rows become one clip on both sides with `label`, for objective kto.",
    "a table with prompt, chosen, rejected, or with prompt, completion, label",
    read,
    {"prompt": "prompt", "id": "id"},
)
