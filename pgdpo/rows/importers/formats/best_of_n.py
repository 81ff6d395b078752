"""Scored clips, several of one prompt -> pairs (all, the best against the worst, or so many per prompt), or groups."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgdpo.files.tables import Record
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.columns.sample import pictures_of
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Media,
    Options,
    Reading,
    first_of,
    lacks,
    media_of,
    number,
    records_of,
    scored,
    tables_of,
    wrong,
)
from pgdpo.rows.importers.groups import grouped, maker_of, ranks_of
from pgdpo.rows.schema import TIE

CLIPS = ("video", "clip", "path", "file", "file_name", "video_path", "image", "url")
SCORES = ("score", "reward", "rating")


@dataclass(frozen=True)
class Candidate:
    clip: Media
    score: float
    scores: dict[str, float]
    fields: dict[str, Any] | list[dict[str, Any]]  # a record's; several where several rated the clip
    source: str | None = None  # what made it
    label: int | None = None  # 1: good, -1: bad, 0: judged by nobody
    pictures: Mapping[str, Media] = field(
        default_factory=dict
    )  # that it starts from and ends with, by a row's key


def read(source: str, options: Options) -> Reading:
    return paired(source, options, _candidate)


def paired(
    source: str, options: Options, candidate_of: Callable[[Record], tuple[str, str, Candidate] | Problem]
) -> Reading:
    """A Reading of the pairs or groups of a table's clips, of which `candidate_of` gives (group, prompt, clip with
    score).

    Only clips of one prompt, and of the same pictures to start from and end with, stand together; a clip that was
    rated more than once is one, of its scores' mean.
    """
    asked = options.pairs or "best-worst"
    most = _pairs_per_prompt(asked)
    rated: dict[tuple, list[Candidate]] = {}
    problems: list[Problem] = []
    for item in records_of(tables_of(source)):
        found = item if isinstance(item, Problem) else candidate_of(item)
        if isinstance(found, Problem):
            problems.append(found)
            continue
        group, prompt, candidate = found
        pictures = tuple((key, media.content) for key, media in candidate.pictures.items())
        rated.setdefault((group, prompt, pictures), []).append(candidate)
    groups = {name: _merged(candidates) for name, candidates in rated.items()}
    again = sum(isinstance(each.fields, list) for candidates in groups.values() for each in candidates)
    notes = [f"{again} clips were rated more than once: the mean of their scores is taken"] if again else []
    if options.groups:
        return _listed(groups, problems, notes)
    chosen = {name: _choose(candidates, most) for name, candidates in groups.items()}
    rows = itertools.chain(
        problems,
        (
            found
            for number, (name, pairs) in enumerate(chosen.items())
            for found in _rows(name[1], number, groups[name], pairs)
        ),
    )
    used = sum(len(set(itertools.chain.from_iterable(pairs))) for pairs in chosen.values())
    unused = sum(map(len, groups.values())) - used
    left_over = [f"{unused} clips stand in no pair (--pairs {asked})"] if unused else []
    return Reading(sum(map(len, chosen.values())) + len(problems), rows, left_over, notes)


def _listed(groups: dict[tuple, list[Candidate]], problems: list[Problem], notes: list[str]) -> Reading:
    """A row a prompt; one clip alone ranks nothing, and stays where it has a label."""
    kept = {name: clips for name, clips in groups.items() if len(clips) > 1 or clips[0].label is not None}
    alone = len(groups) - len(kept)
    left_over = [f"{alone} prompts have one clip: a list of one ranks nothing"] if alone else []
    rows = (_group(prompt, candidates) for (_, prompt, _), candidates in kept.items())
    return Reading(len(kept) + len(problems), itertools.chain(problems, rows), left_over, notes)


def _group(prompt: str, candidates: list[Candidate]) -> Found:
    ranks = ranks_of([each.score for each in candidates])
    samples = [
        {
            "clip": each.clip,
            "score": each.score,
            "rank": rank,
            "label": each.label,
            "scores": each.scores,
            "source": each.source,
            "source_fields": each.fields if isinstance(each.fields, dict) else {"ratings": each.fields},
        }
        for each, rank in zip(candidates, ranks, strict=True)
    ]
    found = grouped(prompt, samples)
    found.row |= candidates[0].pictures
    return found


def _pairs_per_prompt(pairs: str) -> int | None:
    """None: all; else at most so many, the widest gaps first."""
    if pairs in ("all", "best-worst"):
        return None if pairs == "all" else 1
    if not pairs.isdigit() or int(pairs) < 1:
        raise InputError(f"--pairs is {pairs!r}; allowed: all, best-worst, or a whole number ≥ 1 per prompt")
    return int(pairs)


def _candidate(record: Record) -> tuple[str, str, Candidate] | Problem:
    """(group, prompt, the clip with its score)."""
    prompt = first_of(record, "prompt", "caption")
    clip = first_of(record, *CLIPS)
    media = media_of(record, clip[1]) if clip else None
    if prompt is None or media is None:
        return lacks(record, *(("prompt", "caption") if prompt is None else CLIPS))
    found = first_of(record, *SCORES)
    scores = record.values.get("scores")
    named = {name: number(value) for name, value in scores.items()} if isinstance(scores, dict) else {}
    if found is not None:
        named = {found[0]: number(found[1]), **named}
    if not named:
        return lacks(record, *SCORES)
    if None in named.values():
        bad = next(name for name, value in named.items() if value is None)
        value = (scores if isinstance(scores, dict) and bad in scores else record.values).get(bad)
        return wrong(record, bad, value, "a finite number", "score the clip, or leave the record out")
    group = first_of(record, "group", "prompt_id", "group_id")
    # Clips of one prompt belong together, also where each has a seed of its own.
    score = next(iter(named.values()))
    pictures = pictures_of(record, clip[:1])
    candidate = Candidate(media, score, named, record.values, maker_of(record), pictures=pictures)
    return str(group[1] if group else prompt[1]), str(prompt[1]), candidate


def _merged(candidates: list[Candidate]) -> list[Candidate]:
    """Every clip once, in the order in which they come."""
    clips: dict[Any, list[Candidate]] = {}
    for each in candidates:
        content = each.clip.content
        place = content if isinstance(content, bytes) else os.path.normpath(content)
        clips.setdefault((each.clip.folder, place), []).append(each)
    return [several[0] if len(several) == 1 else _mean(several) for several in clips.values()]


def _mean(several: list[Candidate]) -> Candidate:
    names = dict.fromkeys(name for each in several for name in each.scores)
    scores = {
        name: statistics.fmean(each.scores[name] for each in several if name in each.scores) for name in names
    }
    score = statistics.fmean(each.score for each in several)
    labels = [each.label for each in several if each.label is not None]
    label = (sum(labels) > 0) - (sum(labels) < 0) if labels else None
    fields = [each.fields for each in several]
    first = several[0]
    return Candidate(first.clip, score, scores, fields, first.source, label, first.pictures)


def _choose(candidates: list[Candidate], most: int | None) -> list[tuple[int, int]]:
    """Places of (better, worse) by falling gap; of equal scores the earlier one stands first."""
    places = sorted(range(len(candidates)), key=lambda place: -candidates[place].score)
    pairs = list(itertools.combinations(places, 2))
    pairs.sort(key=lambda pair: candidates[pair[1]].score - candidates[pair[0]].score)
    return pairs[:most]


def _rows(
    prompt: str, group: int, candidates: list[Candidate], pairs: list[tuple[int, int]]
) -> Iterator[Found]:
    ranks = ranks_of([each.score for each in candidates])
    for better, worse in pairs:
        chosen, rejected = candidates[better], candidates[worse]
        shared = [name for name in chosen.scores if name in rejected.scores]
        row = {
            "prompt": prompt,
            "chosen": chosen.clip,
            "rejected": rejected.clip,
            "preference": TIE if chosen.score == rejected.score else 1.0,
            "group": group,
            "rank": [ranks[better], ranks[worse]],
            **chosen.pictures,
            **scored(chosen.scores, rejected.scores, shared[0] if shared else None),
        }
        yield Found(row, {"chosen": chosen.fields, "rejected": rejected.fields})


FORMAT = Format(
    "best_of_n",
    "Scored clips: --pairs all, best-worst, or so many per prompt (the widest gaps), or --groups; equal scores make "
    "ties.",
    "a table with prompt, video (or path, clip, file) and score (or reward, or scores: {name: number})",
    read,
    lists=True,
)
