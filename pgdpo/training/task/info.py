"""What prepared rows say of a batch's groups, as objectives read it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from pgdpo.models.family import Family
from pgdpo.objectives import PairInfo
from pgdpo.rows.columns import COLUMNS, OF_LISTS
from pgdpo.rows.dimensions import has_label, label_of
from pgdpo.rows.ranked import ranks_of
from pgdpo.rows.schema import SAMPLES
from pgdpo.training.noising import Sample

READ = [name for name in COLUMNS if name not in OF_LISTS]
OF_SAMPLES = {"reward": "score", "label": "label"}  # fields of `PairInfo`: keys of a group's samples


def pair_info(batch: dict, sample: Sample, family: Family) -> PairInfo:
    """`PairInfo` of a batch (of `collate`): the columns that its rows have, and what its draws gave.

    `timestep` `[B]` is in the model's own unit; `timestep_weight` the rows' own times `objective.timestep_weight`.
    """
    rows, timestep = batch["rows"], sample.sigma * family.num_train_timesteps
    columns = {name: [row[name] for row in rows] for name in READ if rows[0].get(name) is not None}
    if batch["groups"] is not None:
        columns |= sample_columns([row[SAMPLES] for row in rows])
    values = {
        name: torch.tensor(column, dtype=torch.float32, device=timestep.device)
        for name, column in columns.items()
    }
    if batch["groups"] is None and isinstance(sample.latents, Mapping):
        values["parts"] = part_labels(rows, sample.latents, timestep.device)
    if sample.timestep_weight is not None:
        values["timestep_weight"] = sample.timestep_weight * values.get("timestep_weight", 1)
    return PairInfo(timestep=timestep, ids=batch["pair_ids"], draw=batch["draw"], **values)


def part_labels(
    rows: Sequence[dict], parts: Iterable[str], device: torch.device
) -> dict[str, torch.Tensor] | None:
    """`PairInfo.parts`, by `label_of`; a part of which no row has its own preference is not in it, and None where none
    is."""
    found = {
        part: torch.tensor([label_of(row, part) for row in rows], device=device)
        for part in parts
        if any(has_label(row, part) for row in rows)
    }
    return found or None


def sample_columns(groups: Sequence[list[dict]]) -> dict[str, list[list[float]]]:
    """Columns `[B, K]` of groups of K samples: what all of their samples have, advantages made of scores, and ranks: a
    group's own, or by what else it has, so that each is ordered by itself."""
    found = {
        name: [[one[key] for one in samples] for samples in groups]
        for name, key in OF_SAMPLES.items()
        if all(one.get(key) is not None for samples in groups for one in samples)
    }
    found["rank"] = [ranks_of(samples) for samples in groups]
    advantages = [list(advantages_of(samples)) for samples in groups]
    return found if [] in advantages else found | {"advantage": advantages}


def advantages_of(samples: list[dict]) -> Iterator[float]:
    """By how much each sample is better than its group: its own `advantage`, else its score less the mean, over the
    standard deviation (0 where all are alike), as in DGPO's code; nothing where there is neither."""
    if samples[0].get("advantage") is not None:
        yield from (one["advantage"] for one in samples)
    elif samples[0].get("score") is not None:
        scores = [one["score"] for one in samples]
        mean, spread = statistics.fmean(scores), statistics.pstdev(scores)
        yield from ((score - mean) / spread if spread else 0.0 for score in scores)
