"""What of a run belongs together: names in `metrics.jsonl` and `held_out.jsonl` under a panel's title.

The report draws these panels, and TensorBoard's custom scalars have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

PARTS = "parts"  # of a row: the same numbers of each part of a sample, by its name
COLOURS = 8  # that the pages' style tells apart, `run1` and so on


@dataclass(frozen=True)
class Line:
    name: str  # in metrics.jsonl, as `value_of` reads it
    label: str
    colour: str = "accent"  # a CSS variable of the page
    held_out: str | None = None  # the figure of held-out pairs that is drawn beside it


@dataclass(frozen=True)
class Panel:
    """One small plot: `guide` is a value worth a dashed line, `unit` is number, share or rate."""

    title: str
    caption: str
    lines: tuple[Line, ...]
    guide: float | None = None
    unit: str = "number"


PANELS = (
    Panel(
        "Loss",
        "What is minimised. Compare it within one objective only.",
        (Line("loss", "loss", held_out="loss"),),
    ),
    Panel(
        "Margin",
        "Implicit reward of chosen minus rejected, before β. Above zero: told apart the right way.",
        (Line("margin", "margin", held_out="margin"),),
        guide=0.0,
    ),
    Panel(
        "Error against the reference",
        "Below zero: explained better than by the reference. The chosen line should stay there.",
        (
            Line("excess/chosen", "chosen", "chosen", held_out="excess/chosen"),
            Line("excess/rejected", "rejected", "rejected", held_out="excess/rejected"),
        ),
        guide=0.0,
    ),
    Panel(
        "Displacement",
        "Share of pairs whose chosen clip became less likely. Lower is better.",
        (Line("displacement", "displacement", held_out="displacement"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Implicit accuracy",
        "Share of pairs that the model ranks as labelled. Half is a coin toss.",
        (Line("implicit_accuracy", "accuracy", held_out="implicit_accuracy"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Saturated logits",
        "Share of pairs with |logit| above 8, where the sigmoid is flat and a pair teaches nothing more.",
        (Line("saturation", "saturated", held_out="saturation"),),
        unit="share",
    ),
    Panel(
        "Denoising error",
        "Mean squared error of the model on both clips of a pair.",
        (Line("error/chosen", "chosen", "chosen"), Line("error/rejected", "rejected", "rejected")),
    ),
    Panel(
        "Gradient of the rejected half",
        "Its share of the two gradient norms. High: the model mostly unlearns.",
        (Line("gradient_share/rejected", "rejected", "rejected"),),
        guide=0.5,
        unit="share",
    ),
    Panel("Gradient norm", "Of all that trains, before clipping.", (Line("gradient_norm", "norm"),)),
    Panel(
        "Rejection scale and preference gate",
        "PG-DPO's α on the rejected term, and the gate that keeps the chosen term alive.",
        (Line("ars/alpha", "α (ARS)", "rejected"), Line("ipr/gate", "gate (IPR)", "chosen")),
        unit="share",
    ),
    Panel("β", "As train.steer sets it.", (Line("steer/beta", "β"),), unit="rate"),
    Panel(
        "Pull on the chosen",
        "train.steer's sft_weight, in units of the preference's own pull.",
        (Line("steer/sft_weight", "weight", "chosen"),),
        unit="rate",
    ),
    Panel(
        "Learning rate", "After warm-up and schedule.", (Line("learning_rate", "learning rate"),), unit="rate"
    ),
    Panel("Throughput", "Pairs or groups a second, over all ranks.", (Line("pairs_per_second", "a second"),)),
)

# What is drawn of each part behind the panel of that title: a line, for each part one of its own.
BY_PART = {
    "Margin": Panel(
        "Margin by part",
        "Before β and before objective.parts: one part may be told apart and another not.",
        (Line("margin", "", held_out="margin"),),
        guide=0.0,
    ),
    "Error against the reference": Panel(
        "Chosen error by part",
        "Of the chosen clips, against the reference: a part above zero is explained worse than by it.",
        (Line("excess/chosen", "", held_out="excess/chosen"),),
        guide=0.0,
    ),
    "Displacement": Panel(
        "Displacement by part",
        "Share of pairs of whose chosen clip this part became less likely.",
        (Line("displacement", "", held_out="displacement"),),
        guide=0.5,
        unit="share",
    ),
    "Implicit accuracy": Panel(
        "Implicit accuracy by part",
        "Share of pairs that this part ranks as it is labelled.",
        (Line("implicit_accuracy", "", held_out="implicit_accuracy"),),
        guide=0.5,
        unit="share",
    ),
    "Gradient norm": Panel(
        "Gradient by part",
        "Share of the norms of the loss's gradient by each part's prediction. objective.parts shifts it.",
        (Line("gradient_share", ""),),
        unit="share",
    ),
}


def panels_of(parts: Sequence[str], panels: Sequence[Panel] = PANELS) -> list[Panel]:
    """Of whole samples; where these have several parts, each part's behind them."""
    found = []
    for panel in panels:
        found.append(panel)
        if len(parts) > 1 and panel.title in BY_PART:
            found.append(_of_parts(BY_PART[panel.title], parts))
    return found


def _of_parts(panel: Panel, parts: Sequence[str]) -> Panel:
    (line,) = panel.lines
    lines = (
        Line(
            f"{PARTS}/{part}/{line.name}",
            part,
            f"run{place % COLOURS + 1}",
            line.held_out and f"{PARTS}/{part}/{line.held_out}",
        )
        for place, part in enumerate(parts)
    )
    return replace(panel, lines=tuple(lines))


def parts_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the parts that rows of a run's files have figures of."""
    return list(dict.fromkeys(part for row in rows for part in row.get(PARTS) or {}))


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """What a row has under a name; `parts/audio/margin` lies in mappings. None where there is nothing."""
    kind, _, below = name.partition("/")
    if kind != PARTS:
        return row.get(name)
    part, _, own = below.partition("/")
    return ((row.get(PARTS) or {}).get(part) or {}).get(own)
