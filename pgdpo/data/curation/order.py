"""`data.order`: pairs from easy to hard within every epoch, after Curry-DPO (arXiv 2403.07230) and Curriculum-DPO."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pgdpo.config import OrderRule
from pgdpo.data.curation.select import score_margin
from pgdpo.files.bounded import parse_json
from pgdpo.messages.errors import InputError


def stages(rule: OrderRule, rows: list[dict]) -> tuple[np.ndarray, str]:
    """(the chunk 0, 1, ... of every row, 0 with the easiest pairs; what was done, in a sentence).

    Easy is a large margin: of scores, or of implicit rewards under an earlier run. Chunks differ by one row at most.
    Raises InputError if a row has no such margin.
    """
    if rule.by == "margin":
        margin = score_margin(rows, rule.score, needed_by="data.order `margin`")
    else:
        margin = _implicit(rule.file, rows)
    place = np.empty(len(rows), int)
    place[np.argsort(-margin, kind="stable")] = np.arange(len(rows))
    chunk = place * rule.chunks // len(rows)
    ends = [float(margin[chunk == number].mean()) for number in (chunk.min(), chunk.max())]
    return chunk, (
        f"{chunk.max() + 1} chunks from easy to hard by {rule.by}: mean margin {ends[0]:.3g} first, {ends[1]:.3g} last"
    )


def read_margins(file: Path) -> dict[str, float]:
    """Margin by pair. Raises InputError if the file is not there, or another's."""
    try:
        return dict(parse_json(file.read_text(encoding="utf-8"))["margin"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"data.order.file is {file}: cannot be read ({error}): `pgdpo curate CONFIG --implicit-rewards` writes "
            "implicit_rewards.json into a trained run's folder"
        ) from error


def _implicit(file: Path, rows: list[dict]) -> np.ndarray:
    margins = read_margins(file)
    missing = [row["id"] for row in rows if row["id"] not in margins]
    if missing:
        raise InputError(
            f"data.order.file is {file}: has no margin of pair `{missing[0]}` ({len(missing)} of {len(rows)} lack "
            "one): it is of other pairs; write it anew with `pgdpo curate CONFIG --implicit-rewards`"
        )
    return np.array([margins[row["id"]] for row in rows], dtype=float)
