"""Rows that are groups: all clips of one prompt, best first, ranked by their scores or by who beat whom."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pgdpo.files.tables import Record
from pgdpo.rows.importers.format import Found, first_of

Name = TypeVar("Name", bound=Hashable)


def grouped(prompt: str, samples: Sequence[Mapping[str, Any]]) -> Found:
    """The row of one prompt's `samples`, in the order of their ranks.

    A sample holds Media under `clip`, the source's own under `source_fields`, and what else a row's sample may hold;
    what not all of them hold (None, or no such key) is left out of all.
    """
    keys = [key for key in samples[0] if all(each.get(key) is not None for each in samples)]
    order = sorted(range(len(samples)), key=lambda place: samples[place].get("rank", 0))
    listed = [{key: samples[place][key] for key in keys} for place in order]
    return Found({"prompt": prompt, "samples": listed}, {})


def maker_of(record: Record) -> str | None:
    """What made the record's clip, where a column says it: a sample's `source`."""
    found = first_of(record, "source", "model")
    return found[1] if found and isinstance(found[1], str) and found[1].strip() else None


def ranks_of(scores: Sequence[float]) -> list[int]:
    """0 for the highest score; equal ones share a rank."""
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    return [ranks[score] for score in scores]


def ranks_by(comparisons: Iterable[tuple[Name, Name, float]]) -> list[dict[Name, int]]:
    """Ranks, 0 the best, of what was compared two by two: one mapping for each part that comparisons connect.

    `comparisons`: (first, second, the first's share of the votes); those of the same two are added up. What was beaten
    stands below what beat it, directly or over others. A tie shares a rank, and so do those that beat each other in a
    circle: nothing is said against a comparison but where others say it.
    """
    lead: dict[tuple[Name, Name], float] = {}  # of the first over the second
    for first, second, share in comparisons:
        if (second, first) in lead:
            lead[second, first] += 0.5 - share
        elif first != second:
            lead[first, second] = lead.get((first, second), 0.0) + share - 0.5
    return [_levels(part, lead) for part in _connected(lead)]


def _connected(pairs: Iterable[tuple[Name, Name]]) -> list[list[Name]]:
    part: dict[Name, list[Name]] = {}
    for first, second in pairs:
        own, other = part.setdefault(first, [first]), part.setdefault(second, [second])
        if own is not other:
            own += other
            part.update(dict.fromkeys(other, own))
    return list({id(names): names for names in part.values()}.values())


def _levels(names: Sequence[Name], lead: Mapping[tuple[Name, Name], float]) -> dict[Name, int]:
    above: dict[Name, set[Name]] = {name: set() for name in names}
    for (first, second), votes in lead.items():
        if first in above:
            above[second] |= {first} if votes >= 0 else set()
            above[first] |= {second} if votes <= 0 else set()
    for middle in names:  # Warshall: also what is above over others
        for name in names:
            if middle in above[name]:
                above[name] |= above[middle]
    ranks: dict[Name, int] = {}
    while len(ranks) < len(names):
        level = len(set(ranks.values()))
        left = [name for name in names if name not in ranks]
        top = [name for name in left if all(each in ranks or name in above[each] for each in above[name])]
        ranks |= dict.fromkeys(top, level)
    return ranks
