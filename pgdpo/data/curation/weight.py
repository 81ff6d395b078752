"""`data.weight`: what factor a pair's loss gets from its place among all pairs."""

from __future__ import annotations

import numpy as np

from pgdpo.data.curation.select import score_margin
from pgdpo.settings import WeightRule


def weights(rule: WeightRule, rows: list[dict]) -> tuple[np.ndarray, str]:
    """(a factor per row, of mean 1; what was done, in a sentence).

    `rarity`, as VideoDPO (arXiv 2412.14167): p is the share of pairs whose score margin falls into the same of
    `bins` equal bins; the factor goes with p**-power. The mean of 1 keeps the learning rate's meaning
    and is ours. Multiplies a `weight` that the rows have already.
    """
    margin = score_margin(rows, rule.score, needed_by="data.weight `rarity`")
    edges = np.linspace(margin.min(), margin.max(), rule.bins + 1)
    bins = np.clip(np.searchsorted(edges, margin, side="right") - 1, 0, rule.bins - 1)
    share = np.bincount(bins, minlength=rule.bins)[bins] / len(rows)
    factor = share**-rule.power
    factor /= factor.mean()
    own = np.array([row.get("weight", 1.0) for row in rows], dtype=float)
    span = f"{factor.min():.3g} to {factor.max():.3g}"
    why = f"rarity of the margin of {rule.score} in {rule.bins} bins: factors from {span}"
    return factor * own, why
