"""What the values of a winner column mean: the first clip, the second, a tie; refused where it cannot be known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgdpo.data.importers.formats import is_missing, number
from pgdpo.data.schema import TIE
from pgdpo.data.tables import Record

SIDES = (
    ("a", "b"),
    ("1", "2"),
    ("0", "1"),
    ("left", "right"),
    ("first", "second"),
    ("one", "two"),
    ("l", "r"),
)
TIES = {
    *(
        "tie",
        "tied",
        "ties",
        "same",
        "thesame",
        "equal",
        "equals",
        "draw",
        "both",
        "neither",
        "similar",
        "even",
    ),
    *(
        "nopreference",
        "nodifference",
        "aboutthesame",
        "equallygood",
        "equallybad",
        "bothgood",
        "bothbad",
        "unsure",
    ),
    *("tiebothbad", "bothequal", "abouteven", "indifferent"),
}
_WORD = "video|clip|option|model|image|sample|response|answer|output|candidate|side|choice|item|path|file"
_SIDE = re.compile(
    rf"(?:the|{_WORD})?(?P<side>a|b|left|right|first|second|l|r|one|two|\d)(?:{_WORD}|st|nd)?"
    r"(?:is|was)?(?:much|slightly|clearly)?(?:better|preferred|wins?|won|winner|chosen)?"
)
_TRUTH = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0, "0.5": TIE}


def word(value: Any) -> str:
    """A value as it is compared: numbers alike, whatever their form; text without case, spaces and signs."""
    if isinstance(value, bool):
        return str(value).lower()
    parsed = number(value)
    if parsed is not None:
        return f"{parsed:g}"
    return re.sub(r"[\W_]+", "", str(value).lower())


def tokens(name: str) -> tuple[str, ...]:
    """The words and numbers that a column's name is made of: `Video 1`, `video_1`, `VIDEO1` and `video1` alike."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+", name)
    lower = [part.lower() for part in parts]
    glued = re.fullmatch(rf"({_WORD}|prompt|score)([abwlr])", lower[-1]) if lower else None
    return tuple([*lower[:-1], *glued.groups()] if glued else lower)


@dataclass(frozen=True)
class Verdicts:
    """`shares`: value, as `word` has it -> the share of the first clip. A value that is not among them may be what
    one of the `names` (pairs of columns: the clips, their models) holds for its side."""

    shares: Mapping[str, float] = field(default_factory=dict)
    names: tuple[tuple[str, str], ...] = ()

    def share_of(self, value: Any, record: Record) -> float | None:
        """1: the first clip is the better one, 0: the second, 0.5: a tie; None: the value means none of these."""
        if word(value) in self.shares:
            return self.shares[word(value)]
        sides = [any(_names(value, record.values.get(pair[side])) for pair in self.names) for side in (0, 1)]
        return float(sides[0]) if sides[0] != sides[1] else None


def _names(value: Any, clip: Any) -> bool:
    """Whether a value is what the record holds for a side: its text, the file's name, with or without its ending."""
    if not isinstance(value, str) or not isinstance(clip, str) or not value.strip():
        return False
    file = clip.replace("\\", "/").rsplit("/", 1)[-1]
    return value.strip() in (clip, file, os.path.splitext(file)[0])


def understood(
    records: Iterable[Record],
    winner: str,
    clips: tuple[str, str],
    given: Mapping[str, float],
    names: tuple[tuple[str, str], ...] = (),
) -> Verdicts | str:
    """The Verdicts of a column as far as `records` show its values, or why they are not clear.

    `given`: values that the user said the meaning of, as `word` has them; where there is one of either clip, other
    numbers mean nothing. `names`: pairs of columns that may be named by a value.
    """
    held = [record for record in records if not is_missing(record.values.get(winner))]
    words = {word(record.values[winner]) for record in held} - set(given)
    if not words and not given:
        return f"`{winner}` holds nothing"
    shares, numbers = dict(given), set()
    said = any(share != TIE for share in given.values())
    for each in words:
        found = _SIDE.fullmatch(each)
        if each in TIES:
            shares[each] = TIE
        elif each in _TRUTH or number(each) is not None or (found and found["side"].isdigit()):
            numbers.add(each)
        elif found:
            shares[each] = float(found["side"] == next(pair[0] for pair in SIDES if found["side"] in pair))
    if numbers and not said:
        counted = _truths(numbers, winner, clips) or _counted(numbers, clips)
        if counted is None:
            values = ", ".join(sorted(numbers))
            return f"`{winner}` holds {values}, and nothing says which clip {'that' if len(numbers) == 1 else 'each'} is"
        shares |= counted
    verdicts = Verdicts(shares, (clips, *names))
    shown = [verdicts.share_of(record.values[winner], record) for record in held]
    if sum(share is None for share in shown) * 2 > len(held):
        values = ", ".join(repr(record.values[winner]) for record in held[:3])
        return f"`{winner}` holds {values}, which name no clip"
    return verdicts


def _counted(numbers: set[str], clips: tuple[str, str]) -> dict[str, float] | None:
    """Numbers that count the clips: as the columns' names do, else from 1. A 1 alone may also be a yes."""
    if not all(_SIDE.fullmatch(each) and _SIDE.fullmatch(each)["side"].isdigit() for each in numbers):
        return None
    places = {each: _SIDE.fullmatch(each)["side"] for each in numbers}
    named = next((pair for pair in SIDES[1:3] if _differ_by(clips, pair)), None)
    first, second = named or ("1", "2")
    bare = {each for each in numbers if each.isdigit()}
    if not set(places.values()) <= {first, second} or (named is None and "0" in places.values()):
        return None
    if bare == {"1"} and len(places) == 1:
        return None
    return {each: float(place == first) for each, place in places.items()}


def _truths(numbers: set[str], winner: str, clips: tuple[str, str]) -> dict[str, float] | None:
    """Yes and no, where the column's name says of which clip: `a_wins`, `left_is_better`."""
    if not numbers <= set(_TRUTH):
        return None
    named = set(tokens(winner))
    for pair in SIDES:
        if len(named & set(pair)) == 1 and (_differ_by(clips, pair) or pair[0] in ("left", "first")):
            of_first = pair[0] in named
            return {each: _TRUTH[each] if of_first else 1 - _TRUTH[each] for each in numbers}
    return None


def _differ_by(clips: tuple[str, str], pair: tuple[str, str]) -> bool:
    """Whether the two columns' names are alike but for this pair of words, in this order."""
    first, second = map(tokens, clips)
    differing = [both for both in zip(first, second, strict=False) if both[0] != both[1]]
    return len(first) == len(second) and differing == [pair]
