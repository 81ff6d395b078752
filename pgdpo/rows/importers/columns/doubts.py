"""What in a table speaks against the columns that were found: it is refused until the user says how it is meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pgdpo.rows.importers.columns.sample import SIDES, Sample, tokens
from pgdpo.rows.importers.columns.verdicts import (
    WORD_OF_TRUTH,
    Verdicts,
    are_turned,
    label_of,
    own_words,
    word,
)
from pgdpo.rows.importers.format import is_decimal_comma, number
from pgdpo.rows.schema import KEYS

WINNERS = {
    "winner", "preference", "preferred", "choice", "chosen", "label", "answer", "verdict", "vote", "result", "best",
    "better", "judgment", "judgement", "annotation", "selected", "selection", "wins", "win", "pref", "decision",
    "overall", "prefer", "prefers", "like",
}  # fmt: skip
ABOUT = {
    "id", "ids", "negative", "length", "index", "time", "date", "count", "confidence", "comment", "reason", "shown",
}  # fmt: skip
WORSE = {
    "not", "non", "least", "less", "worst", "worse", "rejected", "reject", "rejects", "lose", "loses", "lost", "loser",
    "losing", "loss", "bad", "inferior", "weaker", "dislike", "dislikes", "disliked", "disprefer", "dispreferred",
    "nonpreferred", "unpreferred", "unselected", "unchosen", "discarded", "against",
}  # fmt: skip
LOWER = {
    "fvd", "fid", "kvd", "lpips", "mse", "error", "errors", "artifact", "artifacts", "artefact", "artefacts", "defect",
    "defects", "down", "downvote", "downvotes", "loss", "distance", "penalty", "cost", "rank", "ranking", "flaws",
    "flaw", "issues", "violations", "flicker", "distortion", "noise", *WORSE,
}  # fmt: skip
TIES = {"tie", "ties", "tied", "draw", "equal"}
TURNED = {
    "swap", "swapped", "swapping", "flip", "flipped", "flipping", "reverse", "reversed", "inverted", "mirrored",
    "switched", "exchanged", "turned",
}  # fmt: skip
OF_A_PAIR = set(KEYS) - {
    "id", "prompt", "chosen", "rejected", "fps", "num_frames", "width", "height", "sha256_chosen", "sha256_rejected",
    "source", "licence", "source_fields",
}  # fmt: skip


class Unclear(Exception):
    """Why the columns cannot be told; `guess`: what a user may have to say, with COLUMN or VALUE where it's open."""

    def __init__(self, why: str, guess: dict[str, Any]) -> None:
        super().__init__(why)
        self.guess = guess


def is_named(name: str, words: Iterable[str]) -> bool:
    """Whether one of the words stands in a column's name, and the column isn't about something beside it."""
    return bool(set(tokens(name)) & set(words)) and not set(tokens(name)) & ABOUT


def names_the_worse(name: str) -> bool:
    return bool(set(tokens(name)) & WORSE)


def aligned(clips: tuple[str, str], pair: tuple[str, str]) -> tuple[str, str] | None:
    """Two columns in the order of the clips' by the words in which each two differ; None where these don't match."""
    own, other = own_words(clips), own_words(pair)
    return pair if own == other else pair[::-1] if own == other[::-1] else None


def contradict(clips: tuple[str, str], pair: tuple[str, str]) -> bool:
    """Whether they share words for their sides, and mean others by them: `video_0`, `video_1` and `score_1`, `score_2`,
    or stand against their order."""
    own, other = own_words(clips), own_words(pair)
    return are_turned(own) or bool(frozenset.union(*own) & frozenset.union(*other))


def check_scores(table: Sample, guess: Mapping[str, Any], *names: str) -> bool:
    """Whether commas in these columns' numbers are decimal ones. Raises Unclear where the lower of two may be the
    better, ValueError where 1,234 may be a thousand."""
    low = [name for name in names if set(tokens(name)) & LOWER]
    if low:
        raise Unclear(
            f"the lower `{low[0]}` may be the better one: write a column of better and one of worse clips, or, where "
            "the higher one is, another name",
            {"prompt": guess["prompt"], "chosen": "COLUMN", "rejected": "COLUMN"},
        )
    values = [
        value for name in names for value in table.values(name) if number(value, comma=True) is not None
    ]
    commas = [value for value in values if isinstance(value, str) and "," in value]
    unsure = [value for value in commas if not is_decimal_comma(value)]
    decimal = len(commas) == len(values) > 0 and len(unsure) < len(commas)
    if unsure and not decimal:
        named = ", ".join(f"`{name}`" for name in names)
        raise ValueError(
            f"{unsure[0]!r} of {named} may be a thousand or a decimal: write numbers with a point"
        )
    return decimal


def is_of_labels(table: Sample, name: str) -> bool:
    """Whether a column calls each clip good or bad, in words that say which."""
    words = {word(value) for value in table.values(name)}
    clear = not words & {*WORD_OF_TRUTH, "-1"} or not set(tokens(name)) & (LOWER | TURNED)
    return clear and not {"0", "-1"} <= words and table.all(name, lambda value: label_of(value) is not None)


def check_label(table: Sample, name: str) -> None:
    """Raises ValueError where a column does not say of each clip whether it is good or bad."""
    if not is_of_labels(table, name):
        held = ", ".join(dict.fromkeys(repr(value) for value in table.values(name)[:5]))
        raise ValueError(
            f"`{name}` ({held}) must call each clip good or bad: 1 and 0 (or -1), true and false, up and down, good "
            "and bad, in a column that is true of a good clip; a scale of more than two is a --score"
        )


def check_chosen(table: Sample, guess: Mapping[str, Any], paired: set[str]) -> None:
    """Raises Unclear where a column says more of a pair than that one clip was chosen; `paired`: columns that stand
    for one side."""
    free = [name for name in table.names if name not in guess.values() and name not in paired]
    more = [
        name
        for name in free
        if table.values(name) and (name.lower() in OF_A_PAIR or is_named(name, {*WINNERS, *WORSE, *TIES}))
    ]
    if more:
        named = ", ".join(f"`{name}`" for name in more)
        raise Unclear(
            f"{named} may say of a pair that it is a tie, or more; every row is taken as a clear preference if you say "
            "which is chosen and rejected, and a manifest needs no import",
            dict(guess),
        )


def check_winner(
    table: Sample, guess: Mapping[str, Any], winner: str, verdicts: Verdicts, known: bool
) -> None:
    """Raises Unclear where the winner's name is the worse one's, or another column may turn what it says."""
    if verdicts.all_is_said:
        return
    by_place = {value: verdicts.by_place(value) for value in dict.fromkeys(map(str, table.values(winner)))}
    sides = [[value for value, share in by_place.items() if share == side] for side in (1.0, 0.0)]
    if names_the_worse(winner):
        raise Unclear(
            f"`{winner}` may name the worse clip",
            {**guess, "winner": winner, "a_wins": sides[1] or ["VALUE"], "b_wins": sides[0] or ["VALUE"]},
        )
    for doubt in _doubts(table, guess, winner, verdicts, known) if any(sides) else ():
        raise Unclear(
            doubt,
            {**guess, "winner": winner, "a_wins": sides[0] or ["VALUE"], "b_wins": sides[1] or ["VALUE"]},
        )


def _doubts(
    table: Sample, guess: Mapping[str, Any], winner: str, verdicts: Verdicts, known: bool
) -> Iterator[str]:
    """Why a value that stands for a side may mean another clip in some rows."""
    said = {each for value in table.values(winner) for each in tokens(str(value))}
    said -= verdicts.own[0] | verdicts.own[1]
    for pair, _ in table.pairs(SIDES):
        if pair != (guess["a"], guess["b"]) and said & frozenset.union(*own_words(pair)):
            yield f"`{pair[0]}` and `{pair[1]}` may say which clip `{winner}` means"
    for name in table.names:
        if name in (winner, *guess.values()):
            continue
        if set(tokens(name)) & TURNED and table.all(name, lambda value: word(value) in WORD_OF_TRUTH):
            yield f"`{name}` may turn what `{winner}` says in some rows"
        if not known and set(tokens(name)) & TIES and table.values(name):
            yield f"`{name}` may say that a pair is a tie, whatever `{winner}` says"
