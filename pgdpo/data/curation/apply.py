"""Put `data.select`, `data.weight` and `data.order` to work on prepared pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import numpy as np

from pgdpo.console import progress_bar
from pgdpo.data.curation.order import stages
from pgdpo.data.curation.probe import probe, statistics
from pgdpo.data.curation.select import Embed, Kept, select
from pgdpo.data.curation.weight import weighted
from pgdpo.data.prepared import PreparedPairs
from pgdpo.settings import DataConfig


def curate(data: PreparedPairs, config: DataConfig, *, seed: int) -> list[Kept]:
    """Leave in `data` the pairs that `config.select` keeps, with the weights of `config.weight` and in its `order`.

    Returns what was done, a `Kept` a rule. Raises InputError if a row lacks what a rule reads, or no pair is left.
    """
    rows, chunks, report = curated(
        data.rows, config, embed=lambda prompts: _embeddings(data, prompts), seed=seed
    )
    if report:
        data.restrict(rows, stages=chunks)
    return report


def curated(
    rows: list[dict], config: DataConfig, *, embed: Embed, seed: int
) -> tuple[list[dict], list[int] | None, list[Kept]]:
    """(the rows that stay, with their weights; the stage of each, where there is an order; what was done).

    `embed` and what is raised: as `select` and `stages` have it.
    """
    report = []
    if config.select:
        indices, report = select(config.select, rows, embed=embed, seed=seed)
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
    """The pairs' sources, what curation did, and the probe on their latents, as JSON types."""
    sources = Counter(str(row.get("source", "not given")) for row in data.rows)
    sides: dict[str, list] = {"chosen": [], "rejected": []}
    with progress_bar("probe latents", total=min(PROBED, len(data))) as bar:
        for index in range(min(PROBED, len(data))):
            item = data[index, 0]
            for side, found in sides.items():
                found.append(statistics(item[side]))
            bar.advance()
    found = probe(sides["chosen"], sides["rejected"])
    return {
        "pairs": len(data),
        "prepared": len(data.index["pairs"]),
        "curation": [asdict(kept) for kept in data.curation],
        "sources": dict(sources.most_common()),
        "probe": {"auc": found.auc, "pairs": found.pairs, "telling": found.telling[:5]},
        "verdict": str(found),
    }


def _embeddings(data: PreparedPairs, prompts: list[str]) -> np.ndarray:
    """Mean of each prompt's token embeddings, scaled to length 1: `[N, D]`."""
    means = []
    for prompt in prompts:
        text = data.text(prompt)
        means.append(text["prompt"][text["prompt_mask"]].float().mean(0).numpy())
    points = np.stack(means).astype(float)
    return points / (np.linalg.norm(points, axis=1, keepdims=True) + 1e-12)
