"""One row of preference data: its keys, what each may hold, and how they become columns that objectives read."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pgdpo.messages.problems import broken_text, shown
from pgdpo.rows.columns import COLUMNS

TIE = 0.5
SIDES = ("chosen", "rejected")
REQUIRED = ("id", "prompt", *SIDES)
MANIFEST = "manifest_name"  # in a prepared row, where data.train names several: the one that it comes from


@dataclass(frozen=True)
class Key:
    """`accepts(value)` says whether a row may hold it; `allowed` says the same to a reader."""

    about: str
    allowed: str
    accepts: Callable[[Any], bool]
    mend: str = "leave the key out if it isn't known"  # what to do with another value


def _number(least: float = -math.inf, most: float = math.inf, *, whole: bool = False, above: bool = False):
    def accepts(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least < value if above else least <= value)
            and value <= most
            and not (whole and value != int(value))
        )

    return accepts


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and broken_text(value) is None


def _mapping_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(accepts, value.values()))


def _scores(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= set(SIDES)
        and all(map(_mapping_of(_number()), value.values()))
    )


def _segments(value: Any) -> bool:
    """Pieces in order and without overlap, each with a preference."""
    if not isinstance(value, list) or not value:
        return False
    end = 0.0
    for piece in value:
        if not isinstance(piece, dict) or not {"start", "end", "preference"} <= set(piece):
            return False
        times = _number(0)(piece["start"]) and _number(0)(piece["end"])
        if not times or not piece["start"] < piece["end"] or piece["start"] < end - 1e-6:
            return False
        if not _share(piece["preference"]):
            return False
        end = piece["end"]
    return True


def _sha256(value: Any) -> bool:
    return _text(value) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


_share = _number(0, 1)
_CLIP = "a path relative to the manifest, or a URL"
_PIECES = "a list of {start, end, preference}, start < end, in order, without overlap, preference from 0 to 1"
_COUNT = "a whole number ≥ 1"

KEYS: dict[str, Key] = {
    "id": Key(
        "names the pair; fixes its timesteps and noise", "text, used once", _text, "give the row a name"
    ),
    "prompt": Key(
        "what both clips were made for", "text", lambda value: isinstance(value, str), "write text"
    ),
    "chosen": Key("the better clip", _CLIP, _text, "name a clip"),
    "rejected": Key("the worse clip", _CLIP, _text, "name a clip"),
    "preference": Key(
        "probability that the chosen clip is the better one; 0.5 is a tie",
        "a number from 0 to 1",
        _share,
        "write 1 for a clear preference and 0.5 for a tie",
    ),
    "weight": Key("factor of the pair's loss", "a number ≥ 0", _number(0), "write 1 for an ordinary pair"),
    "dimensions": Key(
        "preference by aspect, as `preference`",
        "a mapping of names to numbers from 0 to 1",
        _mapping_of(_share),
        'write {"motion": 1, "text": 0.5}',
    ),
    "segments": Key(
        "preference by time, in seconds",
        _PIECES,
        _segments,
        'write [{"start": 0, "end": 1, "preference": 1}, ...]',
    ),
    "mask": Key(
        "where the clips differ: a clip or picture of their size, white inside",
        _CLIP,
        _text,
        "name the mask's file",
    ),
    "image": Key(
        "the picture that both clips start from, for image-to-video; by default the chosen clip's first frame",
        _CLIP,
        _text,
        "name the picture's file",
    ),
    "chosen_is_real": Key(
        "the chosen clip was filmed, not generated",
        "true or false",
        lambda value: isinstance(value, bool),
        "write it without quotes",
    ),
    "caption_rejected": Key("the rejected clip's own caption, where it differs", "text", _text),
    "scores": Key(
        "scores by side and name",
        '{"chosen": {name: number}, "rejected": {name: number}}',
        _scores,
        "write finite numbers, and leave out what wasn't scored",
    ),
    "fps": Key("frames a second of both clips", "a number > 0", _number(0, above=True)),
    "num_frames": Key("frames of each clip", _COUNT, _number(1, whole=True)),
    "width": Key("pixels", _COUNT, _number(1, whole=True)),
    "height": Key("pixels", _COUNT, _number(1, whole=True)),
    "sha256_chosen": Key("of the chosen clip's bytes", "64 digits of 0-9a-f", _sha256),
    "sha256_rejected": Key("of the rejected clip's bytes", "64 digits of 0-9a-f", _sha256),
    "source": Key("where the row comes from", "text", _text),
    "licence": Key("under which it may be used", "text", _text),
    "source_fields": Key(
        "what an importer found and has no key for", "a mapping", lambda value: isinstance(value, dict)
    ),
}

# Keys that reach a loss beside prompt and files: objectives' columns, what they follow from, what pairs are chosen by,
# and what a row says of its clips.
LABELS = tuple(
    sorted({*COLUMNS, *KEYS} - {*REQUIRED, "mask", "image", "licence", "source_fields"})
)  # fmt: skip


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one key of a row; where the row stands is its reader's to say."""

    key: str
    what: str
    value: Any = None
    allowed: str = ""
    suggestion: str = ""
    severity: str = "error"


def flaws(row: dict[str, Any]) -> Iterator[Flaw]:
    """Everything that is wrong with one row by itself; a key that holds None counts as absent."""
    for key in REQUIRED:
        if row.get(key) is None:
            close = difflib.get_close_matches(key, [name for name in row if name not in KEYS], n=1)
            hint = f"rename `{close[0]}`" if close else f"add it: a row needs {', '.join(REQUIRED)}"
            yield Flaw(key, f"key `{key}` is missing", allowed=KEYS[key].allowed, suggestion=hint)
    for key, value in row.items():
        if value is None:
            continue
        broken = broken_text({key: value})
        if broken is not None:
            yield _broken(key, broken)
        elif key in KEYS and not KEYS[key].accepts(value):
            known = KEYS[key]
            yield Flaw(key, f"`{key}` is {shown(value)}", value, known.allowed, known.mend)
        elif key in COLUMNS and not COLUMNS[key].accepts(value):
            yield Flaw(
                key,
                f"`{key}` is {shown(value)}",
                value,
                f"a {COLUMNS[key]}",
                "mend the value, or leave the key out of all rows",
            )
        elif key not in KEYS and key not in COLUMNS:
            yield from _misspelt(key, row)
    yield from _at_odds(row)


def _broken(key: str, text: str) -> Flaw:
    place = next(
        number for number, letter in enumerate(text) if letter == "\0" or "\ud800" <= letter <= "\udfff"
    )
    what = "a NUL character" if text[place] == "\0" else "half a character, such as half an emoji"
    around = shown(text[max(0, place - 20) : place + 20])
    return Flaw(
        key,
        f"`{key}` holds {what} ({around}, character {place + 1})",
        text,
        "whole characters, and no NUL",
        "write the text again, without it",
    )


def _misspelt(key: str, row: dict) -> Iterator[Flaw]:
    close = _nearest(key)
    if close and row.get(close) is None and close not in REQUIRED:
        yield Flaw(
            key,
            f"key `{key}` is not one that is read; it is carried along",
            row[key],
            f"`{close}`",
            f"did you mean `{close}`?",
            "warning",
        )


@functools.lru_cache
def _nearest(key: str) -> str | None:
    """The key that is read and nearly spelt like this; a manifest has few different keys and many rows."""
    close = difflib.get_close_matches(key, [*KEYS, *COLUMNS], n=1, cutoff=0.8)
    return close[0] if close else None


def _at_odds(row: dict) -> Iterator[Flaw]:
    preference = row.get("preference")
    probability = row.get("probability")
    if _share(preference) and _share(probability) and preference != probability:
        yield Flaw(
            "probability",
            f"`probability` is {probability!r} and `preference` is {preference!r}: they mean the same",
            probability,
            f"one of the two, or {preference!r} in both",
            "leave `probability` out: it is taken from `preference`",
        )
    if _share(preference) and preference < TIE:
        yield Flaw(
            "preference",
            f"`preference` is {preference!r}: the rejected clip is the better one",
            preference,
            "0.5 to 1 where chosen is the better clip",
            f"swap `chosen` and `rejected` and write {1 - preference:g}",
            "warning",
        )
    sides = [row.get(side) for side in SIDES]
    if _text(sides[0]) and sides[0] == sides[1] and not _is_unpaired(row):
        yield Flaw(
            "rejected",
            f"`rejected` is {shown(sides[1])}, the same file as `chosen`: the pair teaches nothing",
            sides[1],
            "another clip than `chosen`",
            "leave the row out; a single rated clip needs `label` ([1, 0] or [0, -1]) and objective `kto`",
            "warning",
        )


def _is_unpaired(row: dict) -> bool:
    """A single rated clip stands on both sides, and `label` says which of them counts."""
    label = row.get("label")
    return isinstance(label, list) and 0 in label


def columns(row: dict[str, Any]) -> dict[str, Any]:
    """Columns that objectives read and that follow from native keys, where the row doesn't hold them itself.

    `preference` p -> `probability` p. `segments` -> `segment_labels`: +1 where a segment's preference is above
    0.5, -1 below, 0 at a tie; the trainer takes the segments as equal parts of the clip.
    """
    derived: dict[str, Any] = {}
    if row.get("preference") is not None and row.get("probability") is None:
        derived["probability"] = row["preference"]
    if row.get("segments") is not None and row.get("segment_labels") is None:
        signs = [piece["preference"] - TIE for piece in row["segments"]]
        derived["segment_labels"] = [(sign > 0) - (sign < 0) for sign in signs]
    return derived


def cut_labels(row: dict[str, Any], span: Sequence[float] | None) -> dict[str, Any]:
    """A row with the `segment_labels` that follow from its `segments`, of those alone that lie in the `span` (seconds
    from and to) of the clips that is taken: by their middle, or the nearest one."""
    if span is None or not row.get("segments"):
        return row
    if row.get("segment_labels") != columns({"segments": row["segments"]})["segment_labels"]:
        return row  # the row's own
    middles = [(piece["start"] + piece["end"]) / 2 for piece in row["segments"]]
    inside = [place for place, middle in enumerate(middles) if span[0] <= middle < span[1]]
    centre = sum(span) / 2
    inside = inside or [min(range(len(middles)), key=lambda place: abs(middles[place] - centre))]
    return {**row, **columns({"segments": [row["segments"][place] for place in inside]})}
