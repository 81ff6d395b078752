"""One row of preference data: its keys, what each may hold, and how they become columns that objectives read."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pgdpo.messages.problems import broken_text, shown
from pgdpo.objectives.info import OF_GROUPS
from pgdpo.rows.columns import COLUMNS
from pgdpo.rows.groups import KEYS_OF_A_SAMPLE, OF_FILES, SAMPLES, group_flaws
from pgdpo.rows.values import (
    CLIP,
    SHA256,
    SOURCE_FIELDS,
    Flaw,
    Key,
    broken,
    mapping_of,
    nearest,
    number,
    text,
)

TIE = 0.5
SIDES = ("chosen", "rejected")
REQUIRED = ("id", "prompt", *SIDES)
MANIFEST = "manifest_name"  # in a prepared row, where data.train names several: the one that it comes from


def _scores(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= set(SIDES)
        and all(map(mapping_of(number()), value.values()))
    )


def _segments(value: Any) -> bool:
    """Pieces in order and without overlap, each with a preference."""
    if not isinstance(value, list) or not value:
        return False
    end = 0.0
    for piece in value:
        if not isinstance(piece, dict) or not {"start", "end", "preference"} <= set(piece):
            return False
        times = number(0)(piece["start"]) and number(0)(piece["end"])
        if not times or not piece["start"] < piece["end"] or piece["start"] < end - 1e-6:
            return False
        if not _share(piece["preference"]):
            return False
        end = piece["end"]
    return True


_share = number(0, 1)
_PIECES = "a list of {start, end, preference}, start < end, in order, without overlap, preference from 0 to 1"
_COUNT = "a whole number ≥ 1"

KEYS: dict[str, Key] = {
    "id": Key(
        "names the pair; fixes its timesteps and noise", "text, used once", text, "give the row a name"
    ),
    "prompt": Key(
        "what both clips were made for", "text", lambda value: isinstance(value, str), "write text"
    ),
    "chosen": Key("the better clip", CLIP.allowed, text, "name a clip"),
    "rejected": Key("the worse clip", CLIP.allowed, text, "name a clip"),
    SAMPLES: Key(
        "the clips of a group, in the place of chosen and rejected: a list ranked or rated, or one clip alone",
        f"a list of one or more {{{', '.join(KEYS_OF_A_SAMPLE)}}}, of which `clip` is needed",
        lambda value: isinstance(value, list) and bool(value),
    ),
    "preference": Key(
        "probability that the chosen clip is the better one; 0.5 is a tie",
        "a number from 0 to 1",
        _share,
        "write 1 for a clear preference and 0.5 for a tie",
    ),
    "weight": Key("factor of the pair's loss", "a number ≥ 0", number(0), "write 1 for an ordinary pair"),
    "dimensions": Key(
        "preference by aspect, as `preference`; of what the model makes (`video`, `audio`) the label of that part",
        "a mapping of names to numbers from 0 to 1",
        mapping_of(_share),
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
        CLIP.allowed,
        text,
        "name the mask's file",
    ),
    "image": Key(
        "the picture that both clips start from, for image-to-video; by default the chosen clip's first frame",
        CLIP.allowed,
        text,
        "name the picture's file",
    ),
    "last_image": Key(
        "the picture that both clips end with, for models that are given one; by default the chosen clip's last frame",
        CLIP.allowed,
        text,
        "name the picture's file",
    ),
    "chosen_is_real": Key(
        "the chosen clip was filmed, not generated",
        "true or false",
        lambda value: isinstance(value, bool),
        "write it without quotes",
    ),
    "caption_rejected": Key("the rejected clip's own caption, where it differs", "text", text),
    "scores": Key(
        "scores by side and name",
        '{"chosen": {name: number}, "rejected": {name: number}}',
        _scores,
        "write finite numbers, and leave out what wasn't scored",
    ),
    "fps": Key("frames a second of both clips", "a number > 0", number(0, above=True)),
    "num_frames": Key("frames of each clip", _COUNT, number(1, whole=True)),
    "width": Key("pixels", _COUNT, number(1, whole=True)),
    "height": Key("pixels", _COUNT, number(1, whole=True)),
    "sha256_chosen": Key("of the chosen clip's bytes", SHA256.allowed, SHA256.accepts),
    "sha256_rejected": Key("of the rejected clip's bytes", SHA256.allowed, SHA256.accepts),
    "source": Key("where the row comes from", "text", text),
    "licence": Key("under which it may be used", "text", text),
    "source_fields": SOURCE_FIELDS,
}

# Keys that a group's row may hold as a pair's does.
SHARED = (
    "id", "prompt", *OF_GROUPS, "mask", "image", "last_image", "fps", "num_frames", "width", "height", "source",
    "licence", "source_fields",
)  # fmt: skip
OF_A_PAIR = tuple(key for key in dict.fromkeys((*KEYS, *COLUMNS)) if key not in (*SHARED, SAMPLES))

# Keys that reach a loss beside prompt and files: objectives' columns, what they follow from, what pairs are chosen by,
# and what a row says of its clips.
LABELS = tuple(
    sorted({*COLUMNS, *KEYS} - {*REQUIRED, "mask", "image", "last_image", "licence", "source_fields"})
)  # fmt: skip


def sides_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Under which names the clips of a row stand, in a manifest, a record or a shard: `chosen`, `rejected` of a pair,
    `sample0`, `sample1`, ... of a group."""
    samples = row.get(SAMPLES)
    if samples is None:
        return SIDES
    return tuple(f"sample{place}" for place in range(len(samples) if isinstance(samples, list) else 0))


def samples_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a group says of each of its samples, beside its file; nothing of a pair's."""
    return [
        {key: value for key, value in sample.items() if key not in OF_FILES and value is not None}
        for sample in row.get(SAMPLES) or []
    ]


def place_of(side: str) -> int | None:
    """`sample2` -> 2; None for any other key of a file."""
    return int(side[6:]) if side.startswith("sample") else None


def kind_of(sides: Iterable[str]) -> str:
    """`pair` or `group`, by the names of its clips."""
    return "pair" if "chosen" in sides else "group"


def titled(name: str, sides: Iterable[str], side: str = "") -> str:
    """A row, or one of its clips, as messages name it where they go on with what is wrong."""
    about = f"{kind_of(sides)} `{name}`"
    if not side:
        return about
    return f"{about}, {side}" if place_of(side) is None else spoken(name, sides, side)


def worded(side: str) -> str:
    """A clip by itself: "chosen", "sample 2" (counted from 0)."""
    place = place_of(side)
    return side if place is None else f"sample {place}"


def spoken(name: str, sides: Iterable[str], side: str) -> str:
    """A file of a row within a sentence: "`chosen` of pair `a`", "sample 2 of group `g`"."""
    word = f"`{side}`" if place_of(side) is None else worded(side)
    return f"{word} of {kind_of(sides)} `{name}`"


def key_of(side: str, part: str = "") -> str:
    """The key in a row that says a clip's file, or under which `part` (`sha256`) is said of it."""
    if place_of(side) is not None:
        return f"{SAMPLES}.{part or 'clip'}"
    return f"{part}_{side}" if part else side


def said_of(row: Mapping[str, Any], side: str, part: str = "") -> Any:
    """What stands in a manifest's row under `key_of`; None where nothing does."""
    place = place_of(side)
    if place is None:
        return row.get(key_of(side, part))
    samples = row[SAMPLES]
    return samples[place].get(part or "clip") if isinstance(samples[place], Mapping) else None


def scores_of(row: Mapping[str, Any], side: str) -> dict[str, float]:
    """Scores by name of one of a row's clips; of a group its `score` too, under that name."""
    if row.get(SAMPLES) is None:
        return (row.get("scores") or {}).get(side) or {}
    own, scores = said_of(row, side, "score"), said_of(row, side, "scores") or {}
    return scores if own is None else {"score": own, **scores}


def captions_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Clip -> its own caption, of those that have another than the prompt."""
    if row.get(SAMPLES) is None:
        own = {SIDES[1]: row.get("caption_rejected")}
    else:
        own = {side: said_of(row, side, "caption") for side in sides_of(row)}
    return {side: caption for side, caption in own.items() if caption is not None}


def counted(rows: Sequence[Mapping[str, Any]]) -> str:
    """`20 pairs`, or `120 groups of 2 to 6 samples`."""
    return f"{len(rows)} {sized(rows)}"


def sized(rows: Iterable[Mapping[str, Any]]) -> str:
    """`pairs`, or `groups of 2 to 6 samples`."""
    sizes = {len(row[SAMPLES]) for row in rows if row.get(SAMPLES) is not None}
    if not sizes:
        return "pairs"
    most = max(sizes)
    span = f"{most}" if len(sizes) == 1 else f"{min(sizes)} to {most}"
    return f"groups of {span} sample{'s' * (most > 1)}"


def flaws(row: dict[str, Any]) -> Iterator[Flaw]:
    """Everything that is wrong with one row by itself; a key that holds None counts as absent."""
    grouped = row.get(SAMPLES) is not None
    required = (*REQUIRED[:2], SAMPLES) if grouped else REQUIRED
    for key in required:
        if row.get(key) is None:
            close = difflib.get_close_matches(key, [name for name in row if name not in KEYS], n=1)
            hint = f"rename `{close[0]}`" if close else f"add it: a row needs {', '.join(required)}"
            yield Flaw(key, f"key `{key}` is missing", allowed=KEYS[key].allowed, suggestion=hint)
    for key, value in row.items():
        if value is None or (grouped and key in OF_A_PAIR):
            continue
        found = broken_text({key: value})
        if found is not None:
            yield broken(key, found)
        elif key == SAMPLES:
            yield from group_flaws(row, OF_A_PAIR)
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
    if not grouped:
        yield from _at_odds(row)


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
    return nearest(key, (*KEYS, *COLUMNS))


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
    if text(sides[0]) and sides[0] == sides[1] and not _is_unpaired(row):
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
