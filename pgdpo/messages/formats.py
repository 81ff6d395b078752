"""Numbers and names as people read them, on the page and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

NAMES = {
    "pg_dpo": "PG-DPO",
    "dpo": "Diffusion-DPO",
    "sft": "SFT",
    "ipo": "IPO",
    "kto": "Diffusion-KTO",
}


def objective_name(name: str) -> str:
    """The name readers know: `pg_dpo` -> PG-DPO."""
    return NAMES.get(name) or name.replace("_", " ").upper().replace(" DPO", "-DPO")


def is_number(value) -> bool:
    """True for a finite int or float."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def percent(value, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}%" if is_number(value) else "–"


def number(value, digits: int = 3) -> str:
    """Significant digits, thousands apart: 1234567 -> 1,234,567; -0.00012 -> −1.2e-4."""
    if not is_number(value):
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    else:
        text = f"{value:.{digits}g}"
    return text.replace("-", "−")


def in_text(value) -> str:
    """A row's value in words: numbers as `number` has them, a mapping as `name value, name value`."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_text(part)}" for name, part in value.items())
    return number(value) if is_number(value) else str(value)


def signed(value, digits: int = 2) -> str:
    """`+0.12`, `−0.03`, `±0.00` at fixed decimals."""
    if not is_number(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return "±" + text[1:] if float(text) == 0 else text.replace("-", "−")


def duration(seconds) -> str:
    """87.2 -> 1 min 27 s."""
    if not is_number(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or f"{seconds:.1f} s"


def scale_of(values: Collection[float]) -> tuple[float, float]:
    """(low, high) of the line that they are drawn on: 0 to 1 where all of them lie there, else their own range."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)


def place(value, scale: tuple[float, float]) -> float:
    """Where a value lies on a scale (low, high), in percent of its length, inside it."""
    low, high = scale
    return 100 * min(max((value - low) / (high - low), 0.0), 1.0)


def power_of_ten(values: Iterable) -> int:
    """The exponent, a multiple of 3 and at most 0, at which the largest of the numbers has one to three digits."""
    largest = max((abs(value) for value in values if is_number(value)), default=0.0)
    return min(3 * math.floor(math.log10(largest) / 3), 0) if largest else 0
