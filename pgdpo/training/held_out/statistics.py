"""Shares and means with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson_interval(successes: float, total: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927); `successes` may hold halves for ties."""
    share = successes / total
    centre = share + Z95**2 / (2 * total)
    spread = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    scale = 1 + Z95**2 / total
    # Rounding must not put a share of 0 or 1 beside its interval.
    return min(share, max(0.0, (centre - spread) / scale)), max(share, min(1.0, (centre + spread) / scale))


def share(successes: float, total: int) -> dict[str, float]:
    """`value`, `low` and `high` of a share, as the reports show it."""
    low, high = wilson_interval(successes, total)
    return {"value": successes / total, "low": low, "high": high}


def mean(values: Sequence[float]) -> dict[str, float | None]:
    """`value`, `low` and `high` of a mean: Student's 95% interval; a single value has none (None)."""
    value = statistics.fmean(values)
    if len(values) < 2:
        return {"value": value, "low": None, "high": None}
    spread = student95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": value, "low": value - spread, "high": value + spread}


def student95(freedom: int) -> float:
    """The 97.5% quantile of Student's t: exact for 1 and 2 degrees of freedom, from 3 on to 0.5% by the expansion in
    1 / freedom (Abramowitz and Stegun, 26.7.5)."""
    if freedom < 3:
        return {1: 12.706204736, 2: 4.302652730}[freedom]
    z, n = Z95, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))
