"""The columns of a manifest that objectives read (fields of `PairInfo`): kinds and ranges, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER, SIDES, SEGMENTS = "number", "[chosen, rejected]", "list of one number per segment"


@dataclass(frozen=True)
class Column:
    """What a manifest may hold under a field of `PairInfo`."""

    shapes: tuple[str, ...] = (NUMBER,)
    least: float = -math.inf
    most: float = math.inf
    integer: bool = False

    def __str__(self) -> str:
        kind = " or ".join(self.shapes) + (", whole numbers" if self.integer else "")
        bounds = [f"≥ {self.least:g}"] if self.least > -math.inf else []
        bounds += [f"≤ {self.most:g}"] if self.most < math.inf else []
        return ", ".join([kind, *bounds])

    def accepts(self, value: object) -> bool:
        numbers = value if isinstance(value, list) else [value]
        return self._has_shape(value) and all(self._has_number(number) for number in numbers)

    def _has_shape(self, value: object) -> bool:
        if not isinstance(value, list):
            return NUMBER in self.shapes
        return (SEGMENTS in self.shapes and len(value) > 0) or (SIDES in self.shapes and len(value) == 2)

    def _has_number(self, value: object) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and self.least <= value <= self.most
            and not (self.integer and value != int(value))
        )


COLUMNS = {
    "weight": Column(least=0),
    "probability": Column(least=0, most=1),
    "reward_margin": Column(),
    "reward": Column((SIDES,)),
    "label_smoothing": Column(least=0, most=0.5),
    "segment_labels": Column((SEGMENTS,), least=-1, most=1, integer=True),
    "tail": Column((SEGMENTS,), least=0, most=1),
    "group": Column(integer=True),
    "rank": Column((SIDES,), integer=True),
    "uncertainty": Column(least=0),
    "gap_frequency": Column(least=0, most=1),
    "timestep_weight": Column(least=0),
    "advantage": Column((NUMBER, SIDES)),
    "label": Column((SIDES,), least=-1, most=1, integer=True),
}  # `timestep` is drawn, and `masked` is what the trainer computes under the row's mask
OF_LISTS = (
    "group",
    "rank",
)  # of pairs that lists were taken apart into: objectives read lists from `samples` alone


def how_to_get(column: str) -> str:
    """What to do so that rows hold a column that an objective needs."""
    sources = {
        "probability": "write `preference` (or `probability`)",
        "segment_labels": "write `segments` (or `segment_labels`)",
        "weight": "write 1 where nothing is known",
        "gap_frequency": "set data.weight to {by: gap_frequency, score: NAME}, which counts it from the rows' `scores`",
        "label": "write [1, -1] for a pair",
    }
    return sources.get(column, f"write `{column}` into every row, or choose another objective")


def are_hard(probabilities: Iterable[float]) -> bool:
    """Whether no label says how sure it is: all are 0 or 1."""
    return all(probability in (0, 1) for probability in probabilities)


def hard_labels(objective: str, rows: int) -> str:
    """What is said of hard labels where the objective lives by soft ones."""
    return (
        f"objective `{objective}` lives by how sure a label is, and `probability` (or `preference`) is 0 or 1 in all "
        f"{rows} rows: write a share of votes or a reward model's probability, between 0 and 1, into the manifest and "
        "run `pgdpo prepare` again, or choose another objective"
    )
