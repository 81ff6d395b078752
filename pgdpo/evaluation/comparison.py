"""Many runs side by side: means over seeds with intervals, one table, one picture."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from pgdpo.messages.formats import number, percent
from pgdpo.training.held_out.statistics import wilson_interval
from pgdpo.training.panels import PARTS, parts_of

# Student's t at 97.5% for 1, 2, ... degrees of freedom; the last one, on the safe side, for more.
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
MARKERS = "os^Dv"
INTERVALS = (
    "95%. Shares: the wider of Wilson's interval at one run's sample size (seeds share prompts and pairs, so they add "
    "no samples) and Student's t over the seeds. Margin and seconds: Student's t over the seeds."
)


def summarise(rows: list[dict]) -> list[dict]:
    """One entry per label, in the order of `rows` (study.json's `runs`): value, low and high of every figure.

    The value is the mean over the seeds that finished. What was not measured is None; so are the bounds of a figure
    of which one seed says nothing.
    """
    entries = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        done = [row for row in own if row["failed"] is None]
        entries.append(
            {
                "label": label,
                "objective": own[0]["objective"],
                "options": own[0]["options"],
                "seeds": [row["seed"] for row in done],
                "failed": len(own) - len(done),
                "win_rate": share_over_seeds([row["win_rate"] for row in done], "samples"),
                "displacement": share_over_seeds([row["displacement"] for row in done], "pairs"),
                **_by_part(done),
                "margin": mean_over_seeds([row["margin"] for row in done]),
                "seconds_per_step": mean_over_seeds([row["seconds_per_step"] for row in done]),
            }
        )
    return entries


def _by_part(rows: list[dict]) -> dict:
    """`parts`: of each part that its runs' samples have the displacement and the margin; {} of one part alone."""
    found = {}
    for part in parts_of(rows):
        moved = [row[PARTS][part]["displacement"] for row in rows if part in row[PARTS]]
        found[part] = {
            "displacement": share_over_seeds(moved, "pairs"),
            "margin": mean_over_seeds([each["margin"] for each in moved]),
        }
    return {PARTS: found} if found else {}


def mean_over_seeds(values: list[float]) -> dict | None:
    """Mean with Student's 95% interval; the bounds of a single value are None, None stands for no value."""
    if not values:
        return None
    if len(values) == 1:
        return {"value": values[0], "low": None, "high": None}
    half = T975[min(len(values) - 1, len(T975)) - 1] * stdev(values) / math.sqrt(len(values))
    return {"value": mean(values), "low": mean(values) - half, "high": mean(values) + half}


def share_over_seeds(shares: list[dict | None], total: str) -> dict | None:
    """Mean of shares with the interval that `INTERVALS` describes; `total` is the key of a run's sample size."""
    if not shares or None in shares:
        return None
    over_seeds = mean_over_seeds([share["value"] for share in shares])
    size = min(share[total] for share in shares)
    low, high = wilson_interval(over_seeds["value"] * size, size)
    if over_seeds["low"] is not None:
        low, high = max(0.0, min(low, over_seeds["low"])), min(1.0, max(high, over_seeds["high"]))
    return {"value": over_seeds["value"], "low": low, "high": high}


def by_win_rate(entries: list[dict]) -> list[dict]:
    """The best first, those without a win rate last."""
    return sorted(entries, key=lambda entry: -entry["win_rate"]["value"] if entry["win_rate"] else math.inf)


def study_table(result: dict) -> Table:
    """A row per objective of study.json, the best win rate first."""
    budget = result["budget"]
    table = Table(
        title=f"{budget['steps']:,} steps of {budget['pairs_per_step']} pairs or groups each",
        caption=f"Mean over seeds. Intervals: {INTERVALS} Measured on {result['machine']}.",
        caption_justify="left",
    )
    table.add_column("objective", no_wrap=True)
    parts = parts_of(result["objectives"])
    of_parts = [f"{figure}, {part}" for part in parts for figure in ("displacement", "margin")]
    for column in ("seeds", "win rate", "displacement", "margin", *of_parts, "s/step"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in by_win_rate(result["objectives"]):
        failed = f" ({entry['failed']} failed)" if entry["failed"] else ""
        cells = [f"{len(entry['seeds'])}{failed}", _share(entry["win_rate"]), _share(entry["displacement"])]
        cells.append(_value(entry["margin"]))
        for part in parts:
            own = (entry.get(PARTS) or {}).get(part) or dict.fromkeys(("displacement", "margin"))
            cells += [_share(own["displacement"]), _value(own["margin"])]
        cells.append(_value(entry["seconds_per_step"]))
        table.add_row(escape(entry["label"]), *cells)
    return table


def draw(result: dict, path: Path) -> None:
    """study.json as a PNG: win rate against displacement, and margin and seconds a step, by objective."""
    entries = [entry for entry in by_win_rate(result["objectives"]) if entry["seeds"]]
    looks = {
        entry["label"]: {"color": f"C{place % 10}", "marker": MARKERS[place // 10 % len(MARKERS)]}
        for place, entry in enumerate(entries)
    }
    figure = Figure(figsize=(12, max(4.8, 1.6 + 0.3 * len(entries))), dpi=150, layout="constrained")
    plane, margin, seconds = figure.subplots(1, 3, width_ratios=(2.2, 1, 1))
    _draw_plane(plane, entries, result["runs"], looks)
    _draw_column(margin, entries, "margin", "held-out margin (before β)", looks)
    _draw_column(seconds, entries, "seconds_per_step", "seconds a step", looks)
    seconds.set_yticklabels([])
    seconds.set_xlim(left=0)
    budget = result["budget"]
    figure.suptitle(
        f"{budget['steps']:,} steps of {budget['pairs_per_step']} pairs or groups; means over seeds, 95% intervals; "
        f"{result['machine']}",
        fontsize=9,
    )
    figure.savefig(path, format="png")


def _draw_plane(axes, entries: list[dict], runs: list[dict], looks: dict) -> None:
    for row in runs:
        if row["failed"] is None and row["win_rate"]:
            point = (row["displacement"]["value"], row["win_rate"]["value"])
            axes.plot(*point, **looks[row["label"]], markersize=3, alpha=0.4, linestyle="none")
    for entry in entries:
        if entry["win_rate"]:
            x, y = entry["displacement"], entry["win_rate"]
            axes.errorbar(
                x["value"], y["value"], _bars(y), _bars(x), **looks[entry["label"]], capsize=2, linewidth=0.8
            )
    axes.set_xlabel("displacement: share of held-out chosen clips that became less likely")
    axes.set_ylabel("win rate over the reference")
    axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Better is up and to the left; small points are single seeds", fontsize=9)


def _draw_column(axes, entries: list[dict], name: str, label: str, looks: dict) -> None:
    for place, entry in enumerate(entries):
        axes.errorbar(
            entry[name]["value"], place, xerr=_bars(entry[name]), **looks[entry["label"]], capsize=2
        )
    axes.set_yticks(range(len(entries)), [entry["label"] for entry in entries])
    axes.invert_yaxis()
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)


def _bars(figure: dict):
    """Lengths below and above the value, as matplotlib takes them."""
    if figure["low"] is None:
        return None
    return [[figure["value"] - figure["low"]], [figure["high"] - figure["value"]]]


def _share(share: dict | None) -> str:
    return f"{percent(share['value'])} ({percent(share['low'])}–{percent(share['high'])})" if share else "–"


def _value(figure: dict | None) -> str:
    if figure is None:
        return "–"
    half = "" if figure["low"] is None else f" ± {number(figure['high'] - figure['value'], 2)}"
    return number(figure["value"]) + half
