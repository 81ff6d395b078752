"""What the values of a winner column mean: the first clip, the second, a tie; refused where it cannot be known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pgdpo.data.importers.formats import is_missing, number
from pgdpo.data.importers.sample import CLIP_WORD, SIDES, tokens
from pgdpo.data.schema import TIE
from pgdpo.data.tables import Record

TIES = {
    "tie", "tied", "ties", "same", "thesame", "equal", "equals", "draw", "both", "neither", "similar", "even",
    "tievote", "bothbadvote", "nopreference", "nodifference", "aboutthesame", "equallygood", "equallybad", "bothgood",
    "bothbad", "unsure", "tiebothbad", "bothequal", "indifferent",
}  # fmt: skip
_SIDE = re.compile(
    rf"(?:the|{CLIP_WORD})?(?P<side>a|b|left|right|first|second|one|two|\d)(?:{CLIP_WORD}|st|nd)?"
    r"(?:is|was)?(?:much|slightly|clearly)?(?:better|preferred|wins?|won|winner|chosen|votes?)?"
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


@dataclass(frozen=True)
class Verdicts:
    """What the values of a winner column mean: as `said` by the user, `counted` as numbers, as words for a side (the
    clips' columns have their `own`), all by `word`; or as what one of the `names` holds for its side, pairs of columns:
    the clips, their models."""

    said: Mapping[str, float] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    @property
    def all_is_said(self) -> bool:
        """Whether the user said what means a clip: then nothing else does."""
        return any(share != TIE for share in self.said.values())

    def share_of(self, value: Any, record: Record) -> float | None:
        """1: the first clip is the better one, 0: the second, 0.5: a tie; None: the value means none of these, or both
        clips."""
        place, name = self.by_place(value), self.by_name(value, record)
        if name is None or word(value) in self.said:
            return place
        return name if place in (None, name) else None

    def by_place(self, value: Any) -> float | None:
        """As `share_of`, by the value alone."""
        each = word(value)
        if each in self.said:
            return self.said[each]
        if each in TIES:
            return TIE
        found = _SIDE.fullmatch(each)
        if found and not found["side"].isdigit():
            return None if self.all_is_said else _of_first(found["side"], self.own)
        return self.counted.get(each, self.counted.get(found["side"]) if found else None)

    def by_name(self, value: Any, record: Record) -> float | None:
        """As `share_of`, by what the record holds."""
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
    """The Verdicts of a column of which `records` show some values, or why they are not clear.

    `given`: values that the user said the meaning of, as `word` has them; where there is one of either clip, others
    mean none. `names`: pairs of columns that may be named by a value.
    """
    held = [record for record in records if not is_missing(record.values.get(winner))]
    words = {word(record.values[winner]) for record in held} - set(given)
    if not words and not given:
        return f"`{winner}` holds nothing"
    verdicts = Verdicts(given, {}, _own_words(clips), (clips, *names))
    numbers = {each for each in words if _is_number(each)}
    named = all(verdicts.share_of(record.values[winner], record) is not None for record in held)
    if numbers and not verdicts.all_is_said and (not named or numbers & {"0", "1", "2"}):
        counted = _truths(numbers, winner, clips) or _counted(numbers, verdicts.own)
        if counted is None:
            return f"`{winner}` holds {', '.join(sorted(numbers))}, and nothing says which clip that is"
        verdicts = replace(verdicts, counted=counted)
    unknown = 0
    for record in held:
        value, where = record.values[winner], record.problem("").where
        place, name = verdicts.by_place(value), verdicts.by_name(value, record)
        if verdicts.share_of(value, record) is None and None not in (place, name):
            return f"`{winner}` is {value!r} in a record ({where}) where the other clip has that name"
        unknown += place is None and name is None
    if unknown * 2 > len(held):
        values = ", ".join(repr(record.values[winner]) for record in held[:3])
        return f"`{winner}` holds {values}, which name no clip"
    return verdicts


def _is_number(each: str) -> bool:
    """Whether a value counts the clips, says yes or no, or is another number."""
    found = _SIDE.fullmatch(each)
    return each in _TRUTH or number(each) is not None or bool(found and found["side"].isdigit())


def _own_words(clips: tuple[str, str]) -> tuple[str, ...]:
    """The two words that the clips' columns differ by, `1` and `2` or `left` and `right`; () where more differs."""
    first, second = map(tokens, clips)
    differing = [both for both in zip(first, second, strict=False) if both[0] != both[1]]
    return differing[0] if len(first) == len(second) and len(differing) == 1 else ()


def _of_first(side: str, own: tuple[str, ...]) -> float:
    """The first clip's share where this side is the better one; the columns' own words say more than their order."""
    first = own[0] if side in own else next(pair[0] for pair in SIDES if side in pair)
    return float(side == first)


def _counted(numbers: set[str], own: tuple[str, ...]) -> dict[str, float] | None:
    """Numbers that count the clips: as the columns' names do, else from 1, if there is a 2: a 1 alone may be a yes, or
    the second of 0 and 1."""
    places = {each: found["side"] for each in numbers if (found := _SIDE.fullmatch(each))}
    counted = bool(own) and all(map(str.isdigit, own))
    counting = own if counted else ("1", "2")
    if len(places) < len(numbers) or not set(places.values()) <= set(counting):
        return None
    if numbers == {"1"} or (not counted and "2" not in places.values()):
        return None
    return {counting[0]: 1.0, counting[1]: 0.0}


def _truths(numbers: set[str], winner: str, clips: tuple[str, str]) -> dict[str, float] | None:
    """Yes and no, where the column's name says of which clip: `a_wins`, `left_is_better`, `video_1_preferred`."""
    own, named = _own_words(clips), set(tokens(winner))
    if not numbers <= set(_TRUTH):
        return None
    if own and own[0].isdigit() and not named & (set(tokens(clips[0])) - set(own)):
        own = ()  # the number of a question: `q1_winner`
    for pair in filter(None, (own, ("left", "right"), ("first", "second"))):
        if len(named & set(pair)) == 1:
            return {each: share if pair[0] in named else 1 - share for each, share in _TRUTH.items()}
    return None
