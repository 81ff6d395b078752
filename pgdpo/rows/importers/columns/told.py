"""Which columns of a table hold what: as the user says, else by their names and what stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pgdpo.files.tables import Record
from pgdpo.messages.problems import did_you_mean
from pgdpo.rows.importers.columns.doubts import (
    ABOUT,
    WINNERS,
    Unclear,
    aligned,
    check_chosen,
    check_label,
    check_scores,
    check_winner,
    contradict,
    is_named,
    is_of_labels,
    names_the_worse,
)
from pgdpo.rows.importers.columns.sample import CLIPS, SIDES, Sample, is_clip, is_there, tokens
from pgdpo.rows.importers.columns.verdicts import Verdicts, label_of, understood, word
from pgdpo.rows.importers.format import number
from pgdpo.rows.schema import TIE

PROMPTS = ("prompt", "caption", "text", "description", "instruction", "query", "input")
NO_PROMPTS = ABOUT | {  # what is about a prompt
    "category", "type", "kind", "class", "genre", "style", "topic", "theme", "tag", "tags", "group", "set", "split",
    "dataset", "source", "hash", "sha", "md5", "key", "path", "file", "filename", "folder", "url", "link", "lang",
    "language", "locale", "model", "version", "author", "user", "number", "num", "no", "nr", "words", "tokens", "size",
    "score", "rating", "quality", "difficulty", "level", "label", "status", "name", "title", "embedding",
}  # fmt: skip
SCORES = {
    "score", "scores", "reward", "rating", "votes", "vote", "mos", "elo", "stars", "points", "grade", "overall",
    "results",
}  # fmt: skip
LABELS = {
    "label", "labels", "thumb", "thumbs", "feedback", "rating", "vote", "verdict", "judgment", "judgement", "reaction",
    "like", "liked", "good", "desirable", "accepted", "approved",
}  # fmt: skip
VOTES = {"votes", "vote", "results"}  # of which the share is the preference
DIRECT = (
    ("chosen", "rejected"), ("preferred", "rejected"), ("preferred", "dispreferred"), ("accepted", "rejected"),
    ("winner", "loser"), ("winning", "losing"), ("win", "lose"), ("win", "loss"), ("better", "worse"),
    ("best", "worst"), ("positive", "negative"), ("good", "bad"), ("w", "l"),
)  # fmt: skip
CHOICES = ("prompt", "chosen", "rejected", "a", "b", "winner", "score_a", "score_b", "clip", "score", "label")
WINS = {"a_wins": 1.0, "b_wins": 0.0, "tie": TIE}


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns. Either chosen and rejected; or a, b and what decides: winner, or both scores;
    or, of a table of ratings, clip and score, or label (good or bad), or both. `verdicts`: what the winner's values
    mean; `values`: as they stand."""

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    a: str | None = None
    b: str | None = None
    winner: str | None = None
    score_a: str | None = None
    score_b: str | None = None
    clip: str | None = None
    score: str | None = None
    label: str | None = None
    decimal_comma: bool = False
    verdicts: Verdicts = field(default_factory=Verdicts)
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def named(self) -> dict[str, str]:
        return {key: getattr(self, key) for key in CHOICES if getattr(self, key) is not None}

    @property
    def counts_votes(self) -> bool:
        """Whether the scores are numbers of votes, whose share is the preference."""
        return self.score_a is not None and bool(VOTES & set(tokens(self.score_a)))


def find(records: Sequence[Record], given: Mapping[str, Any]) -> Columns:
    """The columns of a table of which these are the first records; `given`: options that the user typed.

    Raises Unclear, ValueError for a column that isn't there.
    """
    table = Sample(records)
    known = {key: _existing(table, key, given[key]) for key in CHOICES if given.get(key)}
    _consistent(known)
    guess: dict[str, Any] = {"prompt": known.get("prompt") or _prompt(table, known) or "COLUMN"}
    try:
        pair = _clips(table, known)
    except ValueError as error:
        raise Unclear(str(error), guess | {"a": "COLUMN", "b": "COLUMN", "winner": "COLUMN"}) from error
    guess |= pair or {"a": "COLUMN", "b": "COLUMN", "winner": "COLUMN"}
    if guess["prompt"] == "COLUMN":
        held = ", ".join(f"`{name}`" for name in _prompts(table, known))
        raise Unclear(f"the prompt may be {held}" if held else "no column is the prompt's by its name", guess)
    if not pair:
        raise Unclear(
            "no two columns, and no column with scores or labels, hold clips by their names and values", guess
        )
    if "label" in guess:
        check_label(table, guess["label"])
    if "clip" in guess and "score" not in guess:
        return Columns(**guess)
    if "score" in guess:
        return Columns(**guess, decimal_comma=check_scores(table, guess, guess["score"]))
    if "chosen" in guess:
        if "chosen" not in known:
            check_chosen(table, guess, {name for pair, _ in table.pairs(DIRECT) for name in pair})
        return Columns(**guess)
    return _decided(table, guess, known, given)


def _existing(table: Sample, key: str, name: str) -> str:
    if name in table.names:
        return name
    alike = [each for each in table.names if tokens(each) == tokens(name)]
    if len(alike) == 1:
        return alike[0]
    raise ValueError(
        f"--{_option(key)} is {name!r}{did_you_mean(name, table.names)}; its columns: {', '.join(table.names)}"
    )


def _consistent(known: Mapping[str, str]) -> None:
    """Raises ValueError for options that exclude each other, or one without its other."""
    ways = [{"chosen", "rejected"}, {"a", "b", "winner", "score_a", "score_b"}, {"clip", "score", "label"}]
    ways = [sorted(set(known) & way) for way in ways]
    ways = [way for way in ways if way]
    if len(ways) > 1 or {"winner", "score_a"} <= set(known):
        first, second = ("winner", "score_a") if len(ways) == 1 else (ways[0][0], ways[1][0])
        raise ValueError(
            f"--{_option(first)} and --{_option(second)} exclude each other: give one of the two"
        )
    for both in (("chosen", "rejected"), ("a", "b"), ("score_a", "score_b")):
        alone = [key for key in both if key in known]
        if len(alone) == 1:
            other = next(key for key in both if key not in known)
            raise ValueError(f"--{_option(alone[0])} is given without --{_option(other)}: give both")


def _option(key: str) -> str:
    return key.replace("_", "-")


def _prompts(table: Sample, known: Mapping[str, str]) -> list[str]:
    """Columns of text that may be the prompt's: those named `prompt` alone, else all that are named like it."""
    text = [
        name
        for name in table.names
        if name not in known.values() and table.all(name, lambda v: isinstance(v, str))
    ]
    named = [name for name in text if set(tokens(name)) & set(PROMPTS) and not set(tokens(name)) & NO_PROMPTS]
    named = [name for name in named if not table.all(name, is_clip)]
    alone = [[name for name in named if tokens(name) == (each,)] for each in PROMPTS[:2]]
    return next(filter(None, alone), named)


def _prompt(table: Sample, known: Mapping[str, str]) -> str | None:
    found = _prompts(table, known)
    return found[0] if len(found) == 1 else None


def _clips(table: Sample, known: Mapping[str, str]) -> dict[str, str]:
    """{chosen, rejected}, {a, b} or {clip, score, label}: as given, else as found; empty if none is."""
    for first, second in (("chosen", "rejected"), ("a", "b")):
        if first in known and second in known:
            return {first: known[first], second: known[second]}
    rated = {"clip", "score", "label"} & set(known)
    if not rated:
        if not {"winner", "score_a"} & set(known) and (direct := _best(table, DIRECT, known)):
            return {"chosen": direct[0], "rejected": direct[1]}
        if both := _best(table, SIDES, known):
            return {"a": both[0], "b": both[1]}
        if {"winner", "score_a"} & set(known):
            return {}
    return _rated(table, known)


def _rated(table: Sample, known: Mapping[str, str]) -> dict[str, str]:
    """{clip, score or label, or both where both are given} of a table of ratings, if there are such columns; Unclear
    for several."""
    clips = [
        name for name in table.names if table.holds_clips(name, tokens(name)) and name not in known.values()
    ]
    clips = [known["clip"]] if "clip" in known else sorted(clips, key=_place)
    given = {key: known[key] for key in ("score", "label") if key in known}
    if clips and given:
        return {"clip": clips[0], **given}
    for key, named in (("score", _scores(table)), ("label", _labels(table))):
        names = [name for name in named if name not in clips]
        if clips and len(names) > 1:
            prompt = known.get("prompt") or _prompt(table, known) or "COLUMN"
            held = ", ".join(f"`{name}`" for name in names)
            raise Unclear(f"the {key} may be {held}", {"prompt": prompt, "clip": clips[0], key: names[0]})
        if clips and names:
            return {"clip": clips[0], key: names[0]}
    return {}


def _place(name: str) -> int:
    """By which words for clips a column is named: the sooner, the likelier."""
    return min((CLIPS.index(each) for each in tokens(name) if each in CLIPS), default=len(CLIPS))


def _best(
    table: Sample, sides: Sequence[tuple[str, str]], known: Mapping[str, str]
) -> tuple[str, str] | None:
    """The pair of clips: files that are there before others, and the words for clips by their order.

    Raises ValueError where a third column of clips goes with them.
    """
    taken = set(known.values())
    found = []
    for pair, stem in table.pairs(sides):
        if all(table.holds_clips(name, stem) and name not in taken for name in pair):
            third = table.third(pair[1])
            if third is not None and table.holds_clips(third, stem):
                raise ValueError(f"`{pair[0]}`, `{pair[1]}` and `{third}` are more than two clips")
            found.append(pair)

    def rank(pair: tuple[str, str]) -> tuple[float, bool, int]:
        there = sum(is_there(record, name) for record in table.records[:20] for name in pair)
        return -there, not all(table.all(name, is_clip) for name in pair), _place(pair[0])

    return min(found, key=rank, default=None)


def _scores(table: Sample) -> list[str]:
    """Columns of numbers that are named as scores; one named so alone before others."""
    named = [name for name in table.names if set(tokens(name)) & SCORES and table.holds_numbers(name)]
    return [name for name in named if len(tokens(name)) == 1] or named


def _labels(table: Sample) -> list[str]:
    """Columns that are named as labels, and call some clips good and others bad."""
    named = [name for name in table.names if is_named(name, LABELS) and is_of_labels(table, name)]
    return [name for name in named if {1, -1} <= set(map(label_of, table.values(name)))]


def _decided(table: Sample, guess: dict, known: Mapping[str, str], given: Mapping[str, Any]) -> Columns:
    """With what says which of a and b is the better one."""
    meant, clips = _meant(given), (guess["a"], guess["b"])
    if "score_a" in known:
        return _scored(table, guess, (known["score_a"], known["score_b"]))
    winners, why, others = _winners(table, guess, known, meant)
    if len(winners) == 1:
        [(winner, verdicts)] = winners.items()
        check_winner(table, guess, winner, verdicts, "winner" in known)
        return _with_values(table, Columns(**guess, winner=winner, verdicts=verdicts))
    if winners:
        named = ", ".join(f"`{name}`" for name in winners)
        raise Unclear(f"which clip is better may be said by {named}", guess | {"winner": next(iter(winners))})
    if why:
        winner = next(iter(why))
        held = sorted({word(value) for value in table.values(winner)} - set(meant))
        numbers = len(held) == 2 and all(number(each) is not None for each in held)
        numbers = numbers and not names_the_worse(winner)
        first, second = held if numbers else ("VALUE", "VALUE")
        values = {"a_wins": [first], "b_wins": [second]}
        raise Unclear(why[winner], guess | {"winner": winner} | values)
    scored = [pair for pair, stem in table.pairs(SIDES) if pair != clips and _are_scores(table, pair, stem)]
    if len(scored) == 1 and (fitting := aligned(clips, scored[0])) is not None:
        return _scored(table, guess, fitting)
    if scored:
        named = ", ".join(f"`{name}`" for pair in scored for name in pair)
        fitting = next(filter(None, (aligned(clips, pair) for pair in scored)), None)
        first, second = fitting or (("COLUMN", "COLUMN") if contradict(clips, scored[0]) else scored[0])
        raise Unclear(
            f"which clip is better may be said by {named}", guess | {"score_a": first, "score_b": second}
        )
    if others:
        named = ", ".join(f"`{name}`" for name in others)
        raise Unclear(
            f"which clip is better may be said by {named}, by what stands there",
            guess | {"winner": others[0]},
        )
    raise Unclear("no column says which clip is the better one", guess | {"winner": "COLUMN"})


def _meant(given: Mapping[str, Any]) -> dict[str, float]:
    """What the user said that the winner's values mean. Raises ValueError for one that is said to mean two things."""
    meant: dict[str, float] = {}
    for key, share in WINS.items():
        for value in given.get(key) or ():
            if meant.setdefault(word(value), share) != share:
                other = next(each for each in WINS if WINS[each] == meant[word(value)])
                raise ValueError(f"--{_option(other)} and --{_option(key)} both are {value!r}: give it once")
    return meant


def _scored(table: Sample, guess: Mapping[str, str], scores: tuple[str, str]) -> Columns:
    said = {"score_a": scores[0], "score_b": scores[1]}
    return Columns(**guess, **said, decimal_comma=check_scores(table, {**guess, **said}, *scores))


def _are_scores(table: Sample, pair: tuple[str, str], stem: Sequence[str]) -> bool:
    """Numbers that are named as scores, or named for a winner and shares of one."""
    if not all(map(table.holds_numbers, pair)):
        return False
    both = [[number(record.values.get(name)) for name in pair] for record in table.records]
    shares = all(None not in values and abs(sum(values) - 1) < 1e-6 for values in both)
    return bool(set(stem) & SCORES) or (shares and bool(set(stem) & WINNERS))


def _winners(
    table: Sample, guess: Mapping[str, str], known: Mapping[str, str], meant: Mapping[str, float]
) -> tuple[dict[str, Verdicts], dict[str, str], list[str]]:
    """(columns that say which clip is better; those that are named so and aren't clear, and why; those that aren't
    named so, and whose values may say it)."""
    clips = (guess["a"], guess["b"])
    pairs = [pair for pair, _ in table.pairs(SIDES) if pair != clips]
    beside = tuple(filter(None, (aligned(clips, pair) for pair in pairs)))
    of_pairs = {name for pair in pairs for name in pair}
    free = [name for name in table.names if name not in guess.values() and name not in of_pairs]
    names = [known["winner"]] if "winner" in known else free
    found, why, others = {}, {}, []
    for name in names:
        verdicts = understood(table.records, name, clips, meant, beside)
        tells = isinstance(verdicts, Verdicts) and not _is_of_numbers(table, name)
        named = name in known.values() or is_named(name, WINNERS) or (tells and names_the_worse(name))
        if named and isinstance(verdicts, str):
            why[name] = verdicts
        elif named:
            found[name] = verdicts
        elif tells:
            others.append(name)
    alone = [name for name in found if tokens(name) == ("winner",)]
    better = [name for name in found if not names_the_worse(name)]
    return {name: found[name] for name in alone or better or found}, why, others


def _is_of_numbers(table: Sample, name: str) -> bool:
    """Numbers, yes and no mean a clip only in a column that is named so."""
    return any(isinstance(value, bool) or number(value) is not None for value in table.values(name))


def _with_values(table: Sample, columns: Columns) -> Columns:
    """With the winner's values as they stand in the table, for the command line that says the same."""
    values: dict[str, list[Any]] = {key: [] for key in WINS}
    for each in dict.fromkeys(map(str, table.values(columns.winner))):
        share = columns.verdicts.by_place(each)
        if share is not None:
            values[next(key for key, meant in WINS.items() if meant == share)].append(each)
    return replace(columns, values={key: held for key, held in values.items() if held})
