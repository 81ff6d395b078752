"""Put `data.select`, `data.weight` and `data.order` to work on prepared pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pgdpo.config import DataConfig
from pgdpo.data.curation.neighbours import neighbour_entropy
from pgdpo.data.curation.order import stages
from pgdpo.data.curation.probe import probe, statistics
from pgdpo.data.curation.select import Kept, Spread, select
from pgdpo.data.curation.weight import weighted
from pgdpo.data.prepared import PreparedPairs
from pgdpo.diffusion.streams import VIDEO, by_stream
from pgdpo.messages.console import progress_bar
from pgdpo.messages.progress import moved
from pgdpo.rows.dimensions import label_of
from pgdpo.rows.ranked import ends
from pgdpo.rows.schema import sides_of


def curate(
    data: PreparedPairs, config: DataConfig, *, seed: int, once: Callable[[Callable], Any]
) -> list[Kept]:
    """Leave in `data` the pairs that `config.select` keeps, with the weights of `config.weight` and in its `order`.

    `once(make)`: what `make()` gives, made by one of the ranks: how far all prompts lie from each other takes long.
    Returns what was done, a `Kept` a rule. Raises InputError if a row lacks what a rule reads, or no pair is left.
    """
    rows, chunks, report = curated(
        data.rows, config, spread=lambda prompts, k: once(lambda: _spread(data, prompts, k)), seed=seed
    )
    if report:
        data.restrict(rows, stages=chunks)
    return report


def curated(
    rows: list[dict], config: DataConfig, *, spread: Spread, seed: int
) -> tuple[list[dict], list[int] | None, list[Kept]]:
    """(the rows that stay, with their weights; the stage of each, where there is an order; what was done).

    `spread` and what is raised: as `select` and `stages` have it.
    """
    report = []
    if config.select:
        indices, report = select(config.select, rows, spread=spread, seed=seed)
        rows = [rows[index] for index in indices]
    if config.weight:
        rows, why = weighted(config.weight, rows)
        report.append(Kept(f"weight: {config.weight.by}", len(rows), len(rows), why))
    chunks = None
    if config.order:
        chunks, why = stages(config.order, rows)
        report.append(Kept(f"order: {config.order.by}", len(rows), len(rows), why))
    return rows, None if chunks is None else chunks.tolist(), report


PROBED = 1000  # pairs whose latents the probe looks at


def examine(data: PreparedPairs) -> dict:
    """The pairs' sources, what curation did, and the probe on their latents, as JSON types: of samples of several parts
    one of each, by its name."""
    sources = Counter(str(row.get("source", "not given")) for row in data.rows)
    probes = {part: probe(*sides) for part, sides in _statistics(data).items()}
    found = {part: {"auc": p.auc, "pairs": p.pairs, "telling": p.telling[:5]} for part, p in probes.items()}
    several = len(data.streams) > 1
    told = [f"{part}: {p}" if several else str(p) for part, p in probes.items()]
    return {
        "pairs": len(data),
        "prepared": len(data.index["pairs"]),
        "curation": [asdict(kept) for kept in data.curation],
        "sources": dict(sources.most_common()),
        "probe": found if several else found.get(VIDEO),
        "verdict": "\n".join(told) or "no probe: no row has two samples of which one is better",
    }


def _statistics(data: PreparedPairs) -> dict[str, tuple[list[dict], list[dict]]]:
    """(of the better clips, of the worse), by the label that each part is trained with; ties and silent rows are
    not among them."""
    found: dict[str, tuple[list[dict], list[dict]]] = {}
    probed = [index for index, row in enumerate(data.rows) if len(sides_of(row)) > 1][:PROBED]
    with progress_bar("probe latents", total=len(probed)) as bar:
        for index in probed:
            item, row = data[index, 0], data.rows[index]
            sides = [by_stream(item["samples"][sides_of(row).index(side)]) for side in ends(row)]
            for part in sides[0]:
                label = label_of(row, part) if len(data.streams) > 1 else 1
                for kept, side in zip(
                    found.setdefault(part, ([], [])), sides[::label] if label else (), strict=False
                ):
                    kept.append(statistics(side[part]))
            bar.advance()
    return {part: lists for part, lists in found.items() if lists[0]}


def _spread(data: PreparedPairs, prompts: list[str], neighbours: int) -> np.ndarray:
    """`neighbour_entropy` of the means of the prompts' token embeddings, scaled to length 1."""
    points, first = None, {row["prompt"]: index for index, row in reversed(list(enumerate(data.rows)))}
    for number, prompt in enumerate(prompts):
        text = data.prompt_of(first[prompt])
        mean = text["prompt"][text["prompt_mask"]].double().mean(0)
        points = torch.empty(len(prompts), len(mean)) if points is None else points
        points[number] = mean / (mean.norm() + 1e-12)
        moved(f"read {number + 1} of {len(prompts)} prompts")
    return neighbour_entropy(points, neighbours)
