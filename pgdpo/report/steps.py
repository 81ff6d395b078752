"""A run's evaluated steps beside each other: over-optimisation shows in them, and which step to take."""

from __future__ import annotations

from pathlib import Path

from pgdpo.checkpoints.published import read_results
from pgdpo.report.curves.series import Drawn, curves
from pgdpo.training.panels import PARTS, Line, Panel, panels_of, parts_of

PANELS = (
    Panel(
        "Win rate over the reference",
        "Share of clips scored above the reference's, ties half. A half is a coin toss.",
        (Line("win_rate", "win rate"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Displacement",
        "Share of held-out chosen clips that became less likely. Lower is better.",
        (Line("displacement", "displacement"),),
        guide=0.5,
        unit="share",
    ),
    Panel(
        "Mean reward",
        "Of the same prompts and starting noise. A fall after a peak is over-optimisation.",
        (Line("reference", "reference", "muted"), Line("aligned", "aligned")),
    ),
)


def evaluated_steps(out: Path, results: dict) -> tuple[list[dict], int]:
    """(one row for each evaluated step that `results` can be compared with, how many others there are).

    A row: `step`, `results` as they stand in its `results.json`, `moved`: each part's displacement, and what is drawn.
    """
    paths = sorted(out.glob("evaluations/step-*/results.json"))
    found = [each for each in map(read_results, paths) if each is not None]
    shared = ("settings", "began")
    alike = [each for each in found if all(each.get(key) == results.get(key) for key in shared)]
    return [_row(each) for each in alike], len(found) - len(alike)


def _row(results: dict) -> dict:
    reward = results.get("reward") or {}
    moved = {part: found["displacement"] for part, found in (results.get(PARTS) or {}).items()}
    return {
        "step": results["steps"],
        "results": results,
        "win_rate": (results["win_rate"] or {}).get("value"),
        "displacement": results["displacement"]["value"],
        "moved": moved,
        PARTS: {part: {"displacement": share["value"]} for part, share in moved.items()},
        **{side: (reward.get(side) or {}).get("total") for side in ("reference", "aligned")},
    }


def step_curves(rows: list[dict]) -> list[Drawn]:
    """Win rate, displacement and reward over the steps, displacement by part too; none of a single step."""
    return curves(rows, panels_of(parts_of(rows), PANELS), measured=True) if len(rows) > 1 else []
