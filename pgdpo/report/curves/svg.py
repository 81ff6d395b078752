"""A panel as inline SVG in the page's own colours and typeface, and the numbers that its hover shows."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgdpo.training.panels import Panel

WIDTH, HEIGHT = 440, 250  # of the view box
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 24, 46  # of it, around the plot
POINTS = 300  # of a line: longer ones are thinned, their extremes kept
SMOOTHING = 0.08  # share of the run that a smoothed point averages over


@dataclass(frozen=True)
class Series:
    """One line of a panel; values that are not finite leave gaps.

    `kind`: `logged` is drawn thin, and thick as it is smoothed; `exact` as it is; `measured` as dots, with `low` and
    `high` where they have an interval.
    """

    label: str
    colour: str  # a CSS variable of the page
    x: np.ndarray
    y: np.ndarray
    kind: str = "logged"
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def smoothed(self) -> np.ndarray:
        window = 2 * int(SMOOTHING * len(self.x) / 2) + 1
        return self.y if self.kind != "logged" or window < 3 else smooth(self.y, window)


class Scale:
    """Steps and values -> places in the view box."""

    def __init__(self, panel: Panel, series: Sequence[Series]) -> None:
        steps = np.concatenate([each.x for each in series])
        self.first, self.last = float(steps.min()), float(steps.max())
        if self.first == self.last:
            self.first, self.last = self.first - 1, self.last + 1
        if panel.unit == "share":
            self.ticks, (self.low, self.high) = [0, 0.25, 0.5, 0.75, 1], (-0.03, 1.03)
            return
        values = np.concatenate(
            [part for each in series for part in (each.y, each.low, each.high) if part is not None]
        )
        values = values[np.isfinite(values)]
        given = [] if panel.guide is None else [panel.guide]
        self.ticks = nice_ticks(min(values.min(), *given, math.inf), max(values.max(), *given, -math.inf))
        margin = 0.04 * (self.ticks[-1] - self.ticks[0])
        self.low, self.high = self.ticks[0] - margin, self.ticks[-1] + margin

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers around low..high."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def draw(panel: Panel, series: Sequence[Series], marks: Sequence[tuple[int, str]] = ()) -> tuple[str, str]:
    """(the drawing, its numbers as JSON: `x` and `y` of every series, and the scale)."""
    scale = Scale(panel, series)
    parts = [*_frame(panel, scale), *_marks(scale, marks)]
    for each in series:
        parts += _line(scale, each)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>'
    return picture, json.dumps(_numbers(panel, scale, series), separators=(",", ":")).replace("<", "\\u003c")


def _frame(panel: Panel, scale: Scale) -> list[str]:
    """A quiet frame: hairlines across, steps below, the guide dashed."""
    power = 0 if panel.unit == "share" else _power(scale.ticks)
    parts = []
    for tick in scale.ticks:
        y = scale.y(tick)
        label = f"{tick:.0%}" if panel.unit == "share" else f"{tick / 10**power:.4g}".replace("-", "−")
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 5:.1f}" text-anchor="end">{label}</text>')
    if power:
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        parts.append(f'<text x="{LEFT}" y="13">×10{raised}</text>')
    for tick in nice_ticks(scale.first, scale.last, 5):
        if scale.first <= tick <= scale.last and tick == round(tick):
            parts.append(
                f'<text x="{scale.x(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{tick:,.0f}</text>'
            )
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">step</text>')
    if panel.guide is not None:
        y = scale.y(panel.guide)
        parts.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return parts


def _power(ticks: Sequence[float]) -> int:
    """Of ten, in which the labels are written: a multiple of 3 where the numbers are small or large."""
    largest = max(map(abs, ticks))
    return 0 if 0.05 <= largest < 10_000 else 3 * math.floor(math.log10(largest) / 3)


def _marks(scale: Scale, marks: Sequence[tuple[int, str]]) -> list[str]:
    """Decisions, as triangles on the step axis."""
    y = HEIGHT - BOTTOM
    return [
        f'<path class="mark" d="M{scale.x(step):.1f} {y - 7}l4 7h-8z"><title>{html.escape(text)}</title></path>'
        for step, text in marks
        if scale.first <= step <= scale.last
    ]


def _line(scale: Scale, series: Series) -> list[str]:
    colour = f'style="--c:var(--{series.colour})"'
    if series.kind == "measured":
        dots = [
            f'<circle class="dot" {colour} cx="{scale.x(x):.1f}" cy="{scale.y(y):.1f}" r="3.2"/>'
            for x, y in zip(series.x, series.y, strict=True)
            if math.isfinite(y)
        ]
        return [
            *_band(scale, series, colour),
            _path(scale, series.x, series.y, f'class="between" {colour}'),
            *dots,
        ]
    smoothed = series.smoothed
    thin = (
        []
        if smoothed is series.y
        else [_path(scale, *_thinned(series.x, series.y), f'class="thin" {colour}')]
    )
    alone = [_dot(scale, series, colour)] if np.isfinite(series.y).sum() == 1 else []
    return [*thin, _path(scale, *_thinned(series.x, smoothed), f'class="thick" {colour}'), *alone]


def _dot(scale: Scale, series: Series, colour: str) -> str:
    """Of a single value, which no line shows."""
    (place,) = np.flatnonzero(np.isfinite(series.y))
    x, y = scale.x(series.x[place]), scale.y(series.y[place])
    return f'<circle class="dot" {colour} cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'


def _band(scale: Scale, series: Series, colour: str) -> list[str]:
    """The interval of what was measured."""
    if series.low is None:
        return []
    known = np.isfinite(series.low) & np.isfinite(series.high)
    if known.sum() < 2:
        return []
    x, low, high = series.x[known], series.low[known], series.high[known]
    outline = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
    points = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in outline)
    return [f'<polygon class="band" {colour} points="{points}"/>']


def _path(scale: Scale, xs: np.ndarray, ys: np.ndarray, attributes: str) -> str:
    """A line, broken where a value is not finite."""
    words, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        words.append(f"{pen}{scale.x(x):.1f} {scale.y(y):.1f}")
        pen = "L"
    return f'<path {attributes} d="{"".join(words)}"/>'


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about POINTS of them: of each stretch the lowest and the highest, in their order."""
    if len(x) <= POINTS:
        return x, y
    kept: set[int] = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), POINTS // 2):
        finite = part[np.isfinite(y[part])]
        # Of a stretch without a number one place, so that the gap stays.
        kept |= (
            {int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}
            if len(finite)
            else {int(part[0])}
        )
    places = sorted(kept)
    return x[places], y[places]


def _numbers(panel: Panel, scale: Scale, series: Sequence[Series]) -> dict:
    """For the pointer: what stands where."""
    lines = []
    for each in series:
        x, y = (each.x, each.y) if each.kind == "measured" else _thinned(each.x, each.smoothed)
        line = {"label": each.label, "colour": each.colour, "x": x.tolist(), "y": _rounded(y)}
        if each.low is not None:
            line |= {"low": _rounded(each.low), "high": _rounded(each.high)}
        lines.append(line)
    box = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH}
    bounds = {"first": scale.first, "last": scale.last, "low": scale.low, "high": scale.high}
    return {"unit": panel.unit, **box, **bounds, "lines": lines}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred moving mean of odd `window`, over the finite values inside it; NaN where there are none."""
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    half = min(window // 2, len(values) - 1)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    total, number = sums[high] - sums[low], counts[high] - counts[low]
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0)
