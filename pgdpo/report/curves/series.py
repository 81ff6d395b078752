"""Rows of a run's files -> series of a panel -> drawn panels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgdpo.report.curves import svg
from pgdpo.report.curves.svg import Series
from pgdpo.training.panels import PANELS, Line, Panel, value_of


@dataclass(frozen=True)
class Drawn:
    """A panel on the page: its series, what it shows in words, its drawing, and the numbers behind it as JSON."""

    panel: Panel
    series: list[Series]
    words: str
    svg: str
    data: str


def curves(
    metrics: list[dict],
    panels: Sequence[Panel] = PANELS,
    *,
    held_out: Sequence[dict] = (),
    marks: Sequence[tuple[int, str]] = (),
    measured: bool = False,
) -> list[Drawn]:
    """Every panel that has something to draw.

    Args:
        metrics: rows of `metrics.jsonl`; `held_out`: of `held_out.jsonl`.
        marks: (step, what was decided after it), told on the step axis.
        measured: the rows are few, and what lies between them was not measured.
    """
    found = []
    for panel in panels:
        series = [
            each for line in panel.lines for each in line_series(line, panel, metrics, held_out, measured)
        ]
        if series:
            found.append(drawn(panel, series, marks))
    return found


def drawn(panel: Panel, series: list[Series], marks: Sequence[tuple[int, str]] = ()) -> Drawn:
    picture, data = svg.draw(panel, series, marks)
    return Drawn(panel, series, "; ".join(map(_in_words, series)), picture, data)


def line_series(
    line: Line, panel: Panel, metrics: list[dict], held_out: Sequence[dict], measured: bool = False
) -> list[Series]:
    """What there is of a line: as it was trained, and last on held-out pairs."""
    kind = "measured" if measured else "exact" if panel.unit == "rate" else "logged"
    found = [Series(line.label, line.colour, _steps(metrics), column(metrics, line.name), kind)]
    if line.held_out is not None:
        bounds = [_bound(held_out, line.held_out, bound) for bound in ("value", "low", "high")]
        label = f"{line.label}, held out" if len(panel.lines) > 1 else "held out"
        found.append(Series(label, line.colour, _steps(held_out), bounds[0], "measured", *bounds[1:]))
    return [series for series in found if np.isfinite(series.y).any()]


def _steps(rows: Sequence[dict]) -> np.ndarray:
    return np.array([row["step"] for row in rows], dtype=np.float64)


def column(rows: Sequence[dict], name: str) -> np.ndarray:
    """A name of each row; NaN where it is missing or null."""
    return _finite(value_of(row, name) for row in rows)


def _bound(rows: Sequence[dict], figure: str, bound: str) -> np.ndarray:
    return _finite((value_of(row, figure) or {}).get(bound) for row in rows)


def _finite(values) -> np.ndarray:
    found = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _in_words(series: Series) -> str:
    finite = series.y[np.isfinite(series.y)]
    return f"{series.label} from {finite[0]:.3g} to {finite[-1]:.3g}"
