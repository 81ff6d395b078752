"""Labels of a pair's parts: the picture may be better and the sound worse, by the row's `dimensions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def label_of(row: Mapping[str, Any], part: str) -> int:
    """A pair's label in one of its parts: +1 as the pair's, -1 the other way, 0 a tie.

    By its share in `dimensions`: above one half, below it, one half. A row that says nothing of a part has the pair's,
    as a group has its order.
    """
    share = (row.get("dimensions") or {}).get(part)
    return 1 if share is None else (share > 0.5) - (share < 0.5)


def has_label(row: Mapping[str, Any], part: str) -> bool:
    """Whether a row says itself which clip is better in a part."""
    return part in (row.get("dimensions") or {})


def label_notes(
    rows: Sequence[Mapping[str, Any]], parts: Sequence[str], weights: Mapping[str, float] | None = None
) -> list[str]:
    """What a run on samples of these parts must know of its rows' `dimensions`: how many pairs have another label, or
    a tie, in a part, in how many no part counts, and which dimensions are of none. Nothing where samples have one part.

    `weights`: of the parts in the loss, 1 where one is not named. A row's `sound` says whether it has any.
    """
    if len(parts) < 2:
        return []
    words = []
    for part in parts:
        labels = [label_of(row, part) for row in rows]
        counts = {"the other way": labels.count(-1), "a tie": labels.count(0)}
        if any(counts.values()):
            words.append(f"{part} {', '.join(f'{count} {what}' for what, count in counts.items() if count)}")
    found = [f"dimensions: of {len(rows)} pairs {'; '.join(words)}"] if words else []
    weighed = [part for part in parts if (weights or {}).get(part, 1)]
    idle = sum(
        not any(label_of(row, part) for part in weighed if part == parts[0] or row.get("sound", True))
        for row in rows
    )
    if idle:
        found.append(
            f"dimensions: {idle} of {len(rows)} pairs are a tie in every part that counts: nothing is learnt of these"
        )
    named = {name: None for row in rows for name in row.get("dimensions") or {} if name not in parts}
    if named:
        found.append(
            f"dimensions {', '.join(f'`{name}`' for name in named)}: no part of what the model makes "
            f"({', '.join(parts)}); not read"
        )
    return found
