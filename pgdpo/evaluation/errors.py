"""Errors of held-out pairs under both models, and what their difference, the excess, says of a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import collate
from pgdpo.diffusion.streams import by_stream, each
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo.objectives.parts import Parts
from pgdpo.reference import mean_errors
from pgdpo.rows.ranked import ranked
from pgdpo.rows.schema import MANIFEST, SAMPLES
from pgdpo.sampling.clips import Job
from pgdpo.training.held_out.measure import measurable
from pgdpo.training.held_out.statistics import share
from pgdpo.training.metrics import BUCKETS, bucket_name
from pgdpo.training.noising import held_out_level, sample_at


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

    def of(self, transformer: torch.nn.Module, items: list[Job]) -> list[list[float]]:
        """[chosen, rejected] mean squared errors of each item, (index, draw)s of one draw; of groups best, worst."""
        batch, level = collate([self.data[item] for item in items]), self.level(items[0][1])
        sample = sample_at(batch, level, self.config, self.family, self.device)
        predicted = self.family.predict(transformer, sample.noisy, sample.each, sample.conditioning)
        size, parts = batch["groups"] or 2, Parts.read(self.config.objective.get("parts"))
        of_streams = each(
            lambda goal, made, mask: mean_errors(made, goal, mask, size=size),
            by_stream(sample.target), by_stream(predicted), sample.mask,
        )  # fmt: skip
        errors = sum(parts.weight(name) * found for name, found in of_streams.items()).tolist()
        if batch["groups"] is None:
            return errors
        orders = [ranked(row[SAMPLES]) for row in batch["rows"]]
        return [[found[order[0]], found[order[-1]]] for found, order in zip(errors, orders, strict=True)]

    def excess(self, reference: dict[str, list], aligned: dict[str, list]) -> dict[str, list]:
        """Lists `pair`, `sigma`, `chosen`, `rejected` with one entry per draw and pair, from what `of` gave for each of
        `batches`."""
        found: dict[str, list] = {name: [] for name in ("pair", "sigma", "chosen", "rejected")}
        for name, items in self.batches.items():
            for (index, draw), before, after in zip(items, reference[name], aligned[name], strict=True):
                found["pair"].append(self.data.rows[index]["id"])
                found["sigma"].append(self.level(draw))
                found["chosen"].append(after[0] - before[0])
                found["rejected"].append(after[1] - before[1])
        return found


def compared(excess: dict[str, list], data: PreparedPairs) -> dict:
    """The figures of a `results.json`: over all pairs, by noise level and by manifest."""
    return {
        "displacement": _displacement(excess, by="pair"),
        "buckets": _by_bucket(excess),
        **({"sources": _by_source(excess, data)} if data.sources else {}),
    }


def margins(excess: dict[str, list]) -> dict[str, float]:
    """Implicit reward margin of each pair: the mean over its noise levels."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, chosen, rejected in zip(excess["pair"], excess["chosen"], excess["rejected"], strict=True):
        found[name].append(rejected - chosen)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _displacement(excess: dict[str, list], by: str) -> dict:
    """Means per pair over its draws, then shares over pairs."""
    per_pair = defaultdict(list)
    for key, chosen, rejected in zip(excess[by], excess["chosen"], excess["rejected"], strict=True):
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


def _by_bucket(excess: dict[str, list]) -> dict:
    buckets = {}
    for number in range(BUCKETS):
        rows = [
            i for i, sigma in enumerate(excess["sigma"]) if min(int(sigma * BUCKETS), BUCKETS - 1) == number
        ]
        if rows:
            buckets[bucket_name(number)] = _part(excess, rows)
    return buckets


def _by_source(excess: dict[str, list], data: PreparedPairs) -> dict:
    """Of each manifest that has held-out pairs."""
    source = {row["id"]: row[MANIFEST] for row in data.rows}
    parts = {
        name: [i for i, pair in enumerate(excess["pair"]) if source[pair] == name] for name in data.sources
    }
    return {name: _part(excess, rows) for name, rows in parts.items() if rows}


def _part(excess: dict[str, list], rows: list[int]) -> dict:
    whole = _displacement({name: [values[i] for i in rows] for name, values in excess.items()}, by="pair")
    return {"displacement": whole.pop("value"), **whole}
