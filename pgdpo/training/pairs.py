"""What a pair brings besides its latents: manifest columns -> `PairInfo` tensors, checked before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pgdpo import models
from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.errors import InputError
from pgdpo.objectives import Objective, PairInfo

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
    "timestep_weight": Column(least=0),
    "advantage": Column((NUMBER, SIDES)),
    "label": Column((SIDES,), least=-1, most=1, integer=True),
}  # all fields but `timestep`, which is drawn, and `masked`, for which the data holds no masks


def pair_info(rows: list[dict], timestep: torch.Tensor) -> PairInfo:
    """`PairInfo` of a batch: the columns that its rows have, and `timestep` `[B]` in the model's own unit."""
    values = {
        name: torch.tensor(
            [row[name] for row in rows],
            dtype=torch.int64 if name == "group" else torch.float32,  # ids may be large
            device=timestep.device,
        )
        for name in COLUMNS
        if rows[0].get(name) is not None
    }
    return PairInfo(timestep=timestep, **values)


def check_data(objective: Objective, config: Config, data: PreparedPairs) -> None:
    """Refuse data and settings that lack what the objective needs; needs no weights.

    Raises InputError naming objective, column, the first row at fault and the file.
    """
    needs, name = objective.needs, objective.name
    if needs.noisy == "siblings":
        raise InputError(
            f"objective `{name}` needs {needs.data}: prepared pairs hold none. Call it from an online loop of your own "
            "(pgdpo.objectives.build_objective)"
        )
    if needs.noisy == "inverted" and config.diffusion.inversion_steps is None:
        raise InputError(
            f"objective `{name}` needs {needs.data}: set diffusion.inversion_steps (10, say), the forwards that a "
            "training step spends on it"
        )
    prediction = models.family(config.model.family).PREDICTION
    if config.diffusion.inversion_steps is not None and prediction != "flow":
        raise InputError(
            f"diffusion.inversion_steps is {config.diffusion.inversion_steps}: inversion is written for flow matching, "
            f"{config.model.family} predicts {prediction}"
        )
    if "masked" in needs.pairs:
        raise InputError(
            f"objective `{name}` needs region masks (PairInfo.masked): prepared data holds none. Call it from a loop "
            "of your own (pgdpo.objectives.build_objective)"
        )
    for column in COLUMNS:
        _check_column(column, data, name if column in needs.pairs else None)


def _check_column(column: str, data: PreparedPairs, needed_by: str | None) -> None:
    """All rows hold the column, or none does unless it is needed; all values are of its kind and of one shape."""
    file, rows, kind = data.folder / "index.json", data.rows, COLUMNS[column]
    present = [row.get(column) is not None for row in rows]
    if not any(present) and needed_by is None:
        return
    where = f"objective `{needed_by}` needs the column `{column}`" if needed_by else f"column `{column}`"
    mend = "in the manifest, then run `pgdpo prepare` again"
    if not all(present):
        lacking = present.index(False)
        others = f"{sum(present)} of {len(rows)} rows have it"
        raise InputError(
            f"{where} ({kind}) in every row: row {lacking + 1}, pair `{rows[lacking]['id']}`, of {file} has none "
            f"({others}); add it {mend}"
        )
    for number, row in enumerate(rows, start=1):
        if not kind.accepts(row[column]):
            raise InputError(
                f"{where}: row {number}, pair `{row['id']}`, of {file} holds {row[column]!r}; expected a {kind}; "
                f"mend it {mend}"
            )
        if _length(row[column]) != _length(rows[0][column]):
            raise InputError(
                f"{where}: row {number}, pair `{row['id']}`, of {file} holds {row[column]!r}, row 1 holds "
                f"{rows[0][column]!r}; expected one shape in all rows; mend it {mend}"
            )


def frame_segments(objective: Objective, config: Config, data: PreparedPairs) -> list[int] | None:
    """The temporal segment of each latent frame, `[F]`; None where the clip stays whole.

    As many segments as the columns that the objective needs have, or `data.segments`. Where the frames don't
    divide, the lengths differ by one frame. Raises InputError for numbers that don't fit.
    """
    count, source = config.data.segments, "data.segments"
    for column in ("segment_labels", "tail"):
        if column not in objective.needs.pairs:
            continue
        length = _length(data.rows[0][column])
        if count not in (None, length):
            raise InputError(
                f"{source} is {count}, `{column}` has {length} entries a row: both must be one number"
            )
        count, source = length, f"`{column}`"
    if count is None:
        return None
    frames = data.latent_shape[1]
    if count > frames:
        raise InputError(
            f"{source} asks for {count} segments; the latents of {data.folder} have {frames} frames: at most that many"
        )
    return [frame * count // frames for frame in range(frames)]


def _length(value: float | list) -> int | None:
    return len(value) if isinstance(value, list) else None
