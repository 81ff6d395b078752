"""Numbers of a plan as people read them."""

from __future__ import annotations

import math


def size_text(count: float) -> str:
    """Bytes in decimal units."""
    power = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:,.{0 if power == 0 else 1}f} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"


def si(count: float) -> str:
    """Three digits and a prefix, for a unit to follow."""
    power = min(6, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}"


def duration_text(seconds: float) -> str:
    """Seconds in the largest unit up to hours that they fill."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.2g} seconds"
