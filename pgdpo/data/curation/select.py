"""`data.select`: rules that keep some of the prepared pairs, one after the other; each says what it kept and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pgdpo.config import SelectRule
from pgdpo.messages.errors import InputError
from pgdpo.rows.ranked import ends
from pgdpo.rows.schema import SAMPLES, SIDES, scores_of, sides_of, titled

Spread = Callable[[list[str], int], np.ndarray]  # prompts, k -> log distance of each to its k-th nearest, [N]


@dataclass(frozen=True)
class Kept:
    """What one rule did: `before` and `after` count pairs, `why` is a sentence."""

    by: str
    before: int
    after: int
    why: str

    def __str__(self) -> str:
        return f"{self.by}: {self.after} of {self.before} pairs stay: {self.why}"


def select(
    rules: list[SelectRule], rows: list[dict], *, spread: Spread, seed: int
) -> tuple[list[int], list[Kept]]:
    """(indices of the rows that all rules keep, in order; one `Kept` a rule).

    `rows`: the pairs of a prepared index. `spread`: how far the prompts lie from each other, asked for by `fifa` alone.
    Raises InputError if a row lacks what a rule reads, or no pair is left.
    """
    left, report = list(range(len(rows))), []
    for rule in rules:
        part = [rows[index] for index in left]
        keep, why = _RULES[rule.by](rule, part, spread=spread, seed=seed)
        report.append(Kept(rule.by, len(left), int(keep.sum()), why))
        left = [index for index, stays in zip(left, keep, strict=True) if stays]
        if not left:
            raise InputError(
                f"data.select: after the rule `{rule.by}` none of {len(part)} pairs is left ({why}): loosen it"
            )
    return left, report


def score_margin(rows: list[dict], name: str, *, needed_by: str) -> np.ndarray:
    """`scores.chosen[name] - scores.rejected[name]` of every row; for the name `reward_margin` that column.

    Of a group its best sample is the chosen one, its worst the rejected one; `score`, or `reward_margin`, is of their
    own `score`.
    """
    if name == "reward_margin" and all("reward_margin" in row for row in rows):
        return np.array([row["reward_margin"] for row in rows], dtype=float)
    if name == "reward_margin" and rows[0].get(SAMPLES) is not None:
        name = "score"
    return _scores(rows, "chosen", name, needed_by) - _scores(rows, "rejected", name, needed_by)


def _scores(rows: list[dict], side: str, name: str, needed_by: str) -> np.ndarray:
    values = []
    for row in rows:
        scores = scores_of(row, ends(row)[SIDES.index(side)])
        if name not in scores:
            known = ", ".join(sorted(scores)) or "none"
            raise InputError(
                f"{needed_by} reads scores.{side}.{name} of every row: {titled(row['id'], sides_of(row))} has {known}; "
                "name a score that all rows have, or add it to the manifest and run `pgdpo prepare` again"
            )
        values.append(scores[name])
    return np.array(values, dtype=float)


def _duplicates(rule: SelectRule, rows: list[dict], **_) -> tuple[np.ndarray, str]:
    """The first pair (or group) of each prompt and clips stays, by the clips' hashes; one of equal clips goes too."""
    keys = [(row["prompt"], *(_hash(row, side) for side in sides_of(row))) for row in rows]
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    alike = [len(key) > 2 and len(set(key[1:])) == 1 for key in keys]
    keep = np.array([first[key] == index and not alike[index] for index, key in enumerate(keys)])
    return (
        keep,
        f"{len(keys) - len(first)} repeat an earlier row's clips, {sum(alike)} have the same clip on all sides",
    )


def _hash(row: dict, side: str) -> str:
    if f"sha256_{side}" not in row:
        raise InputError(
            f"data.select `duplicates` reads the clips' hashes: {titled(row['id'], sides_of(row))} has none: "
            "run `pgdpo prepare` again"
        )
    return row[f"sha256_{side}"]


def _chosen_score(rule: SelectRule, rows: list[dict], **_) -> tuple[np.ndarray, str]:
    """The chosen clip's own score decides: "What Matters in Data for DPO?" finds that its quality dominates."""
    values = _scores(rows, "chosen", rule.score, "data.select `chosen_score`")
    least = rule.least if rule.least is not None else float(np.quantile(values, rule.low))
    return values >= least, f"scores.chosen.{rule.score} >= {least:.4g}"


def _margin(rule: SelectRule, rows: list[dict], **_) -> tuple[np.ndarray, str]:
    values = score_margin(rows, rule.score, needed_by="data.select `margin`")
    low, high = np.quantile(values, [rule.low, rule.high])
    return (values >= low) & (values <= high), (
        f"margin of {rule.score} between {low:.4g} and {high:.4g}, the quantiles {rule.low:g} and {rule.high:g}"
    )


def _fifa(rule: SelectRule, rows: list[dict], *, spread: Spread, **_) -> tuple[np.ndarray, str]:
    """After FiFA (arXiv 2410.10166): margin, text quality and text diversity (the distance to the k-th neighbour, whose
    logarithm estimates entropy) add up; the best `keep` stay. Standardising each part is ours."""
    parts = {"margin": (1.0, score_margin(rows, rule.score, needed_by="data.select `fifa`"))}
    if rule.quality is not None:
        parts["text quality"] = (rule.quality_weight, _numbers(rows, rule.quality))
    if rule.diversity_weight:
        prompts = sorted({row["prompt"] for row in rows})
        entropy = dict(zip(prompts, spread(prompts, rule.neighbours), strict=True))
        parts["text entropy"] = (rule.diversity_weight, np.array([entropy[row["prompt"]] for row in rows]))
    total = sum(weight * _standard(values) for weight, values in parts.values())
    count = max(1, round(rule.keep * len(rows)))
    keep = np.zeros(len(rows), bool)
    keep[np.argsort(-total, kind="stable")[:count]] = True
    means = ", ".join(
        f"{name} {values[keep].mean():.3g} (all: {values.mean():.3g})" for name, (_, values) in parts.items()
    )
    return keep, f"the best {rule.keep:.0%} by the sum; means of what stays: {means}"


def _numbers(rows: list[dict], column: str) -> np.ndarray:
    for row in rows:
        if not isinstance(row.get(column), (int, float)):
            raise InputError(
                f"data.select `fifa` reads the column `{column}` of every row: pair `{row['id']}` holds "
                f"{row.get(column)!r}; expected a number"
            )
    return np.array([row[column] for row in rows], dtype=float)


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() or 1.0)


def _source(rule: SelectRule, rows: list[dict], **_) -> tuple[np.ndarray, str]:
    found = [row.get("source") for row in rows]
    known = sorted({name for name in found if name is not None})
    unknown = [name for name in rule.sources if name not in known]
    if unknown:
        there = f"the rows' sources are {', '.join(known)}" if known else "no row has a `source`"
        raise InputError(f"data.select `source` names {', '.join(unknown)}: {there}")
    return np.array([name in rule.sources for name in found]), f"source is one of {', '.join(rule.sources)}"


def _on_policy(rule: SelectRule, rows: list[dict], *, seed: int, **_) -> tuple[np.ndarray, str]:
    """Drop pairs of the larger side until clips of the model itself (`sources`) make `share` of the pairs."""
    from pgdpo.diffusion.draws import uniform  # needs torch, which `check` loads last

    own = np.array([row.get("source") in rule.sources for row in rows])
    wanted_others = own.sum() * (1 - rule.share) / rule.share
    if wanted_others <= (~own).sum():
        surplus, count = ~own, round(wanted_others)
    else:
        surplus, count = own, round((~own).sum() * rule.share / (1 - rule.share))
    draws = np.array([uniform(seed, index, 0, stream="on_policy") for index in range(len(rows))])
    order = np.argsort(np.where(surplus, draws, np.inf), kind="stable")[:count]
    keep = ~surplus
    keep[order] = True
    share = own[keep].mean() if keep.any() else 0.0
    return (
        keep,
        f"{own.mean():.0%} were of {', '.join(rule.sources)}, now {share:.0%} are (share {rule.share:g})",
    )


_RULES = {
    "duplicates": _duplicates,
    "chosen_score": _chosen_score,
    "margin": _margin,
    "fifa": _fifa,
    "source": _source,
    "on_policy": _on_policy,
}
