"""Shares with intervals."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


def wilson_interval(successes: float, total: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927); `successes` may hold halves for ties."""
    share = successes / total
    centre = share + Z95**2 / (2 * total)
    spread = Z95 * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    scale = 1 + Z95**2 / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def share(successes: float, total: int) -> dict[str, float]:
    """`value`, `low` and `high` of a share, as the reports show it."""
    low, high = wilson_interval(successes, total)
    return {"value": successes / total, "low": low, "high": high}
