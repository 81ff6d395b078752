"""The order of a group's samples, from best to worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgdpo.rows.schema import SAMPLES, sides_of

FALLING = ("score", "advantage", "label")  # the higher the better


def ranked(samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the samples, the best first: by `rank`, else by falling `score`, `advantage` or `label`, else as they
    stand; of equal ones the earlier first."""
    if samples[0].get("rank") is not None:
        return sorted(range(len(samples)), key=lambda place: samples[place]["rank"])
    for key in FALLING:
        if samples[0].get(key) is not None:
            return sorted(range(len(samples)), key=lambda place: -samples[place][key])
    return list(range(len(samples)))


def ends(row: Mapping[str, Any]) -> tuple[str, str]:
    """The clips of a row that stand against each other where two are asked for: chosen and rejected, or a group's best
    and worst sample."""
    sides = sides_of(row)
    if row.get(SAMPLES) is None:
        return sides
    order = ranked(row[SAMPLES])
    return sides[order[0]], sides[order[-1]]
