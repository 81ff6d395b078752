"""`data.weight`: what a pair's score margin says among all pairs': a factor of its loss, or how frequent it is."""

from __future__ import annotations

import numpy as np

from pgdpo.config import WeightRule
from pgdpo.data.curation.select import score_margin


def weighted(rule: WeightRule, rows: list[dict]) -> tuple[list[dict], str]:
    """(the rows with the column that the rule gives them, `weight` or `gap_frequency`; what was done, in a sentence).

    Raises InputError if a row lacks the score.
    """
    column, make = {"rarity": ("weight", weights), "gap_frequency": (rule.by, frequencies)}[rule.by]
    values, why = make(rule, rows)
    return [row | {column: float(value)} for row, value in zip(rows, values, strict=True)], why


def frequencies(rule: WeightRule, rows: list[dict]) -> tuple[np.ndarray, str]:
    """(the share of the pairs whose score margin falls into the same of `bins` equal bins, per row; a sentence)."""
    margin = score_margin(rows, rule.score, needed_by=f"data.weight `{rule.by}`")
    edges = np.linspace(margin.min(), margin.max(), rule.bins + 1)
    bins = np.clip(np.searchsorted(edges, margin, side="right") - 1, 0, rule.bins - 1)
    share = np.bincount(bins, minlength=rule.bins)[bins] / len(rows)
    span = f"{share.min():.3g} to {share.max():.3g}"
    return share, f"shares of the margin of {rule.score} in {rule.bins} bins: from {span}"


def weights(rule: WeightRule, rows: list[dict]) -> tuple[np.ndarray, str]:
    """(a factor per row, of mean 1; what was done, in a sentence).

    After VideoDPO (arXiv 2412.14167): the factor goes with the margin's share (`frequencies`) to the -power. The mean
    of 1 keeps the learning rate's meaning and is ours. Multiplies a `weight` that the rows have already.
    """
    share, _ = frequencies(rule, rows)
    factor = share**-rule.power
    factor /= factor.mean()
    own = np.array([row.get("weight", 1.0) for row in rows], dtype=float)
    span = f"{factor.min():.3g} to {factor.max():.3g}"
    why = f"rarity of the margin of {rule.score} in {rule.bins} bins: factors from {span}"
    return factor * own, why
