"""Errors of held-out pairs under both models, and what their difference, the excess, says of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import collate
from pgdpo.diffusion.streams import by_stream, each
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo.objectives.parts import Parts
from pgdpo.reference import mean_errors
from pgdpo.rows.dimensions import label_of
from pgdpo.rows.ranked import ranked
from pgdpo.rows.schema import MANIFEST, SAMPLES
from pgdpo.sampling.clips import Job
from pgdpo.training.held_out.measure import measurable
from pgdpo.training.held_out.statistics import share
from pgdpo.training.metrics import BUCKETS, bucket_name
from pgdpo.training.noising import held_out_level, sample_at
from pgdpo.training.panels import PARTS


class Errors:
    """Pairs at `draws_per_pair` noise levels spread evenly over the training distribution, in batches by number."""

    def __init__(self, config: Config, family: Family, data: PreparedPairs, device: torch.device) -> None:
        self.config, self.family, self.data, self.device = config, family, data, device
        if not measurable(data):
            raise InputError(
                f"{data.folder / 'index.json'}: all held-out rows are single clips, or groups of equally good "
                "ones, which have no margin: name a manifest of pairs, or of ranked groups, in data.held_out"
            )
        self.batches: dict[str, list[Job]] = {
            f"errors-{number:05d}.json": items for number, items in enumerate(self._batches())
        }

    def _batches(self) -> Iterator[list[Job]]:
        for draw in range(self.config.evaluate.draws_per_pair):
            items = [(index, draw) for index in measurable(self.data)]
            yield from self.data.batches(items, self.config.evaluate.batch)

    def level(self, draw: int) -> float:
        return held_out_level(self.config, self.family, draw)

    def of(self, transformer: torch.nn.Module, items: list[Job]) -> list[dict[str, list[float]]]:
        """Of each item, (index, draw)s of one draw, its parts' [chosen, rejected] mean squared errors, which of them is
        the chosen by the part's own label; of groups best, worst. A model of one stream has one part."""
        batch, level = collate([self.data[item] for item in items]), self.level(items[0][1])
        sample = sample_at(batch, level, self.config, self.family, self.device)
        predicted = self.family.predict(transformer, sample.noisy, sample.each, sample.conditioning)
        size = batch["groups"] or 2
        errors = each(
            lambda goal, made, mask: mean_errors(made, goal, mask, size=size).tolist(),
            by_stream(sample.target), by_stream(predicted), sample.mask,
        )  # fmt: skip
        rows = batch["rows"]
        return [
            {name: _ends(found[place], row, name) for name, found in errors.items()}
            for place, row in enumerate(rows)
        ]

    def excess(self, reference: dict[str, list], aligned: dict[str, list]) -> Excess:
        """From what `of` gave for each of `batches`: of whole samples the weighted sum over the parts that count."""
        streams, parts = self.family.streams, Parts.read(self.config.objective.get("parts"))
        found = Excess(parts={name: Excess() for name in streams} if len(streams) > 1 else {})
        for name, items in self.batches.items():
            for (index, draw), before, after in zip(items, reference[name], aligned[name], strict=True):
                row, sides = self.data.rows[index], [0.0, 0.0]
                about = row["id"], self.level(draw)
                for part in after:
                    own = [new - old for new, old in zip(after[part], before[part], strict=True)]
                    if len(streams) == 1:
                        sides = own
                    elif label_of(row, part):
                        found.parts[part].add(*about, *own)
                        sides = [
                            sum_ + parts.weight(part) * side for sum_, side in zip(sides, own, strict=True)
                        ]
                found.add(*about, *sides)
        return found


def _ends(errors: list[float], row: dict, part: str) -> list[float]:
    """[chosen, rejected] of a sample's errors, which are in the order of its clips."""
    if row.get(SAMPLES) is not None:
        order = ranked(row[SAMPLES])
        return [errors[order[0]], errors[order[-1]]]
    return errors[::-1] if label_of(row, part) < 0 else errors


@dataclass
class Excess:
    """Excess errors over the reference, one entry per draw and pair; `parts`: those of each of several."""

    pair: list[str] = field(default_factory=list)
    sigma: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)
    parts: dict[str, Excess] = field(default_factory=dict)

    def add(self, pair: str, sigma: float, chosen: float, rejected: float) -> None:
        self.pair.append(pair)
        self.sigma.append(sigma)
        self.chosen.append(chosen)
        self.rejected.append(rejected)

    def __add__(self, other: Excess) -> Excess:
        columns = [mine + theirs for mine, theirs in zip(self._columns, other._columns, strict=True)]
        return Excess(*columns, {name: part + other.parts[name] for name, part in self.parts.items()})

    def at(self, rows: list[int]) -> Excess:
        """Of these entries, without parts."""
        return Excess(*([column[row] for row in rows] for column in self._columns))

    @property
    def _columns(self) -> tuple[list, ...]:
        return self.pair, self.sigma, self.chosen, self.rejected


def compared(excess: Excess, data: PreparedPairs) -> dict:
    """The figures of a `results.json`: over all pairs, by noise level and by manifest; the same of each part."""
    parts = {name: compared(part, data) for name, part in excess.parts.items() if part.pair}
    return {
        "displacement": _displacement(excess),
        "buckets": _by_bucket(excess),
        **({"sources": _by_source(excess, data)} if data.sources else {}),
        **({PARTS: parts} if parts else {}),
    }


def displacement_by_part(results: dict) -> dict:
    """`parts` of a `results.json`, of each the displacement alone; {} where samples have one part."""
    parts = results.get(PARTS) or {}
    found = {name: {"displacement": part["displacement"]} for name, part in parts.items()}
    return {PARTS: found} if found else {}


def margins(excess: Excess) -> dict[str, float]:
    """Implicit reward margin of each pair: the mean over its noise levels."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, chosen, rejected in zip(excess.pair, excess.chosen, excess.rejected, strict=True):
        found[name].append(rejected - chosen)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _displacement(excess: Excess) -> dict:
    """Means per pair over its draws, then shares over pairs."""
    per_pair = defaultdict(list)
    for key, chosen, rejected in zip(excess.pair, excess.chosen, excess.rejected, strict=True):
        per_pair[key].append((chosen, rejected))
    means = [
        tuple(sum(column) / len(column) for column in zip(*rows, strict=True)) for rows in per_pair.values()
    ]
    displaced = sum(chosen > 0 for chosen, _ in means)
    accurate = sum((rejected > chosen) + 0.5 * (rejected == chosen) for chosen, rejected in means)
    mean_chosen, mean_rejected = (sum(column) / len(means) for column in zip(*means, strict=True))
    return {
        **share(displaced, len(means)),
        "pairs": len(means),
        "excess/chosen": mean_chosen,
        "excess/rejected": mean_rejected,
        "margin": mean_rejected - mean_chosen,
        "implicit_accuracy": accurate / len(means),
    }


def _by_bucket(excess: Excess) -> dict:
    buckets = {}
    for number in range(BUCKETS):
        rows = [i for i, sigma in enumerate(excess.sigma) if min(int(sigma * BUCKETS), BUCKETS - 1) == number]
        if rows:
            buckets[bucket_name(number)] = _part(excess, rows)
    return buckets


def _by_source(excess: Excess, data: PreparedPairs) -> dict:
    """Of each manifest that has held-out pairs."""
    source = {row["id"]: row[MANIFEST] for row in data.rows}
    parts = {name: [i for i, pair in enumerate(excess.pair) if source[pair] == name] for name in data.sources}
    return {name: _part(excess, rows) for name, rows in parts.items() if rows}


def _part(excess: Excess, rows: list[int]) -> dict:
    whole = _displacement(excess.at(rows))
    return {"displacement": whole.pop("value"), **whole}
