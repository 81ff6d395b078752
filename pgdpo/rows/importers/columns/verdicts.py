"""What the values of a winner column mean: the first clip, the second, a tie; refused where it cannot be known."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pgdpo.files.tables import Record
from pgdpo.rows.importers.columns.sample import CLIP_WORD, SIDES, tokens
from pgdpo.rows.importers.format import is_missing, number
from pgdpo.rows.schema import TIE

TIES = {
    "tie", "tied", "ties", "same", "thesame", "equal", "equals", "draw", "both", "neither", "similar", "even",
    "tievote", "bothbadvote", "nopreference", "nodifference", "aboutthesame", "equallygood", "equallybad", "bothgood",
    "bothbad", "unsure", "tiebothbad", "bothequal", "indifferent",
}  # fmt: skip
_SIDE = re.compile(
    rf"(?:the|{CLIP_WORD})?(?P<side>a|b|left|right|first|second|one|two|\d)(?:{CLIP_WORD}|st|nd)?"
    r"(?:is|was)?(?:much|slightly|clearly)?(?:better|preferred|wins?|won|winner|chosen|votes?)?"
)
_NOT = re.compile(r"\s*[!~¬≠]")  # before a word: any but this one
GOOD = {
    "good", "up", "thumbsup", "thumbup", "upvote", "upvoted", "like", "liked", "positive", "desirable", "accept",
    "accepted", "approve", "approved", "pass", "chosen",
}  # fmt: skip
BAD = {
    "bad", "down", "thumbsdown", "thumbdown", "downvote", "downvoted", "dislike", "disliked", "negative", "undesirable",
    "reject", "rejected", "disapprove", "disapproved", "fail",
}  # fmt: skip
WORD_OF_TRUTH = {"true": 1.0, "yes": 1.0, "1": 1.0, "false": 0.0, "no": 0.0, "0": 0.0, "0.5": TIE}


def word(value: Any) -> str:
    """A value as it is compared: numbers alike, whatever their form; text without case, spaces and signs."""
    if isinstance(value, bool):
        return str(value).lower()
    parsed = number(value)
    if parsed is not None:
        return f"{parsed:g}"
    sign = "not" if _NOT.match(str(value)) else ""
    return sign + re.sub(r"[\W_]+", "", str(value).lower())


def label_of(value: Any) -> int | None:
    """1 for a clip that is called good, -1 for one that is called bad; None for any other word or number."""
    each = word(value)
    if each in BAD or each == "-1" or WORD_OF_TRUTH.get(each) == 0:
        return -1
    return 1 if each in GOOD or WORD_OF_TRUTH.get(each) == 1 else None


Own = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True)
class Verdicts:
    """What the values of a winner column mean: as `said` by the user, `counted` as numbers, as words for a side (the
    clips' columns have their `own`), all by `word`; or as what one of the `names`
    holds for its side, pairs of columns: the clips, their models."""

    said: Mapping[str, float] = field(default_factory=dict)
    counted: Mapping[str, float] = field(default_factory=dict)
    own: Own = (frozenset(), frozenset())
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
    value, clip = _text(value), _text(clip)
    if not value or not clip:
        return False
    file = clip.replace("\\", "/").rsplit("/", 1)[-1]
    return value in (clip, file, os.path.splitext(file)[0])


def _text(value: Any) -> str:
    """A name, as text also where it is a whole number; empty for what is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


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
    verdicts = Verdicts(given, {}, own_words(clips), (clips, *names))
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
    return each in WORD_OF_TRUTH or number(each) is not None or bool(found and found["side"].isdigit())


def own_words(columns: tuple[str, str]) -> Own:
    """The words for a side in each column's name, without what both have at one place: `1` and `2`, `b` and `a`; any
    word where the names differ by that alone."""
    names = [tokens(name) for name in columns]
    if len(names[0]) == len(names[1]):
        differing = [both for both in zip(*names, strict=True) if both[0] != both[1]]
        names = list(zip(*differing, strict=True)) or [(), ()]
        if len(differing) == 1:
            return frozenset(names[0]), frozenset(names[1])
    sides = {word for pair in SIDES for word in pair}
    first, second = (frozenset(each for each in name if each in sides or each.isdigit()) for name in names)
    return first, second


def are_turned(own: Own) -> bool:
    """Whether the columns stand against the order of their words: `video_2` before `video_1`, `right` before `left`."""
    numbers = [[int(each) for each in words if each.isdigit()] for words in own]
    counted = bool(numbers[0] and numbers[1]) and min(numbers[0]) > min(numbers[1])
    return counted or any(second in own[0] - own[1] and first in own[1] - own[0] for first, second in SIDES)


def _of_first(side: str, own: Own) -> float | None:
    """The first clip's share where this side is the better one; the columns' own words say more than their order."""
    if side in own[0] | own[1]:
        return float(side in own[0]) if (side in own[0]) != (side in own[1]) else None
    first = next(pair[0] for pair in SIDES if side in pair)
    return None if are_turned(own) else float(side == first)


def _counted(numbers: set[str], own: Own) -> dict[str, float] | None:
    """Numbers that count the clips: as the columns' names do, else from 1, if there is a 2: a 1 alone may be a yes, or
    the second of 0 and 1."""
    places = {each: found["side"] for each in numbers if (found := _SIDE.fullmatch(each))}
    named = [[each for each in words if each.isdigit()] for words in own]
    counted = bool(named[0] or named[1])
    if counted and (len(named[0]), len(named[1])) != (1, 1) or (not counted and are_turned(own)):
        return None
    counting = (named[0][0], named[1][0]) if counted else ("1", "2")
    if len(places) < len(numbers) or not set(places.values()) <= set(counting):
        return None
    if numbers == {"1"} or (not counted and "2" not in places.values()):
        return None
    return {counting[0]: 1.0, counting[1]: 0.0}


def _truths(numbers: set[str], winner: str, clips: tuple[str, str]) -> dict[str, float] | None:
    """Yes and no, where the column's name says of which clip: `a_wins`, `left_is_better`, `video_1_preferred`."""
    own, named = own_words(clips), set(tokens(winner))
    if not numbers <= set(WORD_OF_TRUTH):
        return None
    if not named & set(tokens(clips[0])) & set(tokens(clips[1])):  # the number of a question: `q1_winner`
        named = {each for each in named if not each.isdigit()}
    places = () if are_turned(own) else (({"left"}, {"right"}), ({"first"}, {"second"}))
    for first, second in (own, *places):
        if bool(named & first) != bool(named & second):
            return {each: share if named & first else 1 - share for each, share in WORD_OF_TRUTH.items()}
    return None
