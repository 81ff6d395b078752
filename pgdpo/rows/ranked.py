"""The order of a group's samples, from best to worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgdpo.messages.formats import in_text
from pgdpo.rows.groups import RATINGS
from pgdpo.rows.schema import SAMPLES, sides_of, worded

FALLING = ("score", "advantage", "label")  # the higher the better


def ranked(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the samples, the best first: by `rank`, else by falling `score`, `advantage` or `label`, else as they
    stand; of equal ones the earlier first."""
    return sorted(range(len(samples)), key=_marks(samples).__getitem__)


def ranks_of(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Of each sample how many are better, in the same order: equal ones share a rank."""
    marks = _marks(samples)
    return [sum(other < own for other in marks) for own in marks]


def _marks(samples: Sequence[Mapping[str, Any]]) -> Sequence[float]:
    """A number for each sample, the lower the better."""
    if samples[0].get("rank") is not None:
        return [sample["rank"] for sample in samples]
    for key in FALLING:
        if samples[0].get(key) is not None:
            return [-sample[key] for sample in samples]
    return range(len(samples))


def ends(row: Mapping[str, Any]) -> tuple[str, str]:
    """The clips of a row that stand against each other where two are asked for: chosen and rejected, or a group's best
    and worst sample."""
    sides = sides_of(row)
    if row.get(SAMPLES) is None:
        return sides
    order = ranked(row[SAMPLES])
    return sides[order[0]], sides[order[-1]]


def drawn(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """Clips in the order in which they are drawn, a group's best first -> what each is called, and how it is rated:
    `["sample 2", "rank 0", "score 0.9"]`."""
    sides, samples = sides_of(row), row.get(SAMPLES)
    if samples is None:
        return {side: [side] for side in sides}
    return {sides[place]: [worded(sides[place]), *_ratings(samples[place])] for place in ranked(samples)}


def _ratings(sample: Mapping[str, Any]) -> list[str]:
    return [f"{key} {in_text(sample[key])}" for key in RATINGS if sample.get(key) is not None]
