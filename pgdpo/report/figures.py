"""Training curves as inline SVG that takes its colours and typeface from the page around it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Stand-ins that are swapped for the page's CSS variables, so that one drawing serves light and dark.
COLOURS = {
    "accent": "#fe0001",
    "chosen": "#fe0002",
    "rejected": "#fe0003",
    "muted": "#fe0004",
    "hair": "#fe0005",
}
SMOOTHING = 0.08  # share of the run that a smoothed point averages over
WIDTH, HEIGHT = 4.4, 2.5  # inches of 72 points


@dataclass(frozen=True)
class Line:
    name: str  # in metrics.jsonl
    label: str
    colour: str = "accent"


@dataclass(frozen=True)
class Panel:
    """One small plot: `guide` is a value worth a dashed line, `unit` is number, share or rate."""

    title: str
    caption: str
    lines: tuple[Line, ...]
    guide: float | None = None
    unit: str = "number"


PANELS = (
    Panel("Loss", "What is minimised. Compare it within one objective only.", (Line("loss", "loss"),)),
    Panel(
        "Margin",
        "Implicit reward of chosen minus rejected, before β. Above zero: told apart the right way.",
        (Line("margin", "margin"),),
        guide=0.0,
    ),
    Panel(
        "Error against the reference",
        "Below zero: explained better than by the reference. The chosen line should stay there.",
        (Line("excess/chosen", "chosen", "chosen"), Line("excess/rejected", "rejected", "rejected")),
        guide=0.0,
    ),
    Panel(
        "Denoising error",
        "Mean squared error of the model on both clips of a pair.",
        (Line("error/chosen", "chosen", "chosen"), Line("error/rejected", "rejected", "rejected")),
    ),
    Panel(
        "Displacement",
        "Share of training pairs whose chosen clip became less likely. Lower is better.",
        (Line("displacement", "displacement"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Implicit accuracy",
        "Share of training pairs that the model ranks as labelled. Half is a coin toss.",
        (Line("implicit_accuracy", "accuracy"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Gradient of the rejected half",
        "Its share of the two gradient norms. High: the model mostly unlearns.",
        (Line("gradient_share/rejected", "rejected", "rejected"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Rejection scale and preference gate",
        "PG-DPO's α on the rejected term, and the gate that keeps the chosen term alive.",
        (Line("ars/alpha", "α (ARS)", "rejected"), Line("ipr/gate", "gate (IPR)", "chosen")),
        unit="share",
    ),
    Panel(
        "Learning rate", "After warm-up and schedule.", (Line("learning_rate", "learning rate"),), unit="rate"
    ),
)


def curves(
    metrics: list[dict], panels: Sequence[Panel] = PANELS, *, name: str = "curve", marked: bool = False
) -> list[tuple[Panel, list[Line], str, str]]:
    """(panel, its lines that have data, description in words, SVG) of every panel that has something to draw.

    Args:
        metrics: rows of `metrics.jsonl`; a missing or non-finite value leaves a gap.
        name: before the ids in the drawings, which are one page's.
        marked: a dot at each row: few were measured, and what lies between them was not.
    """
    drawn = []
    steps = np.array([row["step"] for row in metrics])
    for number, panel in enumerate(panels):
        series = {line: _column(metrics, line.name) for line in panel.lines}
        series = {line: values for line, values in series.items() if np.isfinite(values).any()}
        if series:
            drawn.append(
                (
                    panel,
                    list(series),
                    _in_words(series),
                    _draw(panel, steps, series, f"{name}{number}", marked or len(steps) == 1),
                )
            )
    return drawn


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


def _column(metrics: list[dict], name: str) -> np.ndarray:
    return np.array(
        [math.nan if (value := row.get(name)) is None else value for row in metrics], dtype=np.float64
    )


def _in_words(series: dict[Line, np.ndarray]) -> str:
    parts = []
    for line, values in series.items():
        finite = values[np.isfinite(values)]
        parts.append(f"{line.label} from {finite[0]:.3g} to {finite[-1]:.3g}")
    return "; ".join(parts)


def _draw(panel: Panel, steps: np.ndarray, series: dict[Line, np.ndarray], prefix: str, marked: bool) -> str:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"svg.fonttype": "none", "svg.hashsalt": prefix, "font.size": 10.5, "axes.unicode_minus": True}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _dress(axes, panel)
        window = 2 * int(SMOOTHING * len(steps) / 2) + 1
        for line, values in series.items():
            values = np.where(np.isfinite(values), values, np.nan)
            flat = panel.unit == "rate" or window < 3 or marked
            if not flat:
                axes.plot(steps, values, color=COLOURS[line.colour], linewidth=0.8, alpha=0.35)
            shown = values if flat else smooth(values, window)
            axes.plot(steps, shown, color=COLOURS[line.colour], linewidth=2.0, solid_capstyle="round")
            if marked:
                axes.plot(steps, values, "o", color=COLOURS[line.colour])
        axes.margins(x=0.01)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_the_page(text.getvalue(), prefix)


def _dress(axes, panel: Panel) -> None:
    """A quiet frame: hairlines across, steps below, the guide dashed."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLOURS["hair"])
    axes.tick_params(colors=COLOURS["muted"], length=0, pad=5)
    axes.grid(axis="y", color=COLOURS["hair"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step", color=COLOURS["muted"])
    if panel.unit == "share":
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4), useMathText=False)
        axes.yaxis.get_offset_text().set_color(COLOURS["muted"])
    if panel.guide is not None:
        axes.axhline(panel.guide, color=COLOURS["muted"], linewidth=1.0, dashes=(4, 3))


def _for_the_page(svg: str, prefix: str) -> str:
    """Matplotlib's document as an element: page colours, ids of its own, nothing that reaches outside."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'<svg[^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for name, stand_in in COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.strip()
