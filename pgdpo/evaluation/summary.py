"""What a run prints at its end."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from pgdpo.messages.formats import is_number, number, objective_name, percent
from pgdpo.training.panels import PARTS, parts_of


def summary_table(results: dict) -> Table:
    """One row per evaluated run of the output folder: reward before and after, win rate, displacement, whole and by
    part.

    `results` is what `results.json` holds; this run's row is bold. Intervals are 95%.
    """
    apart = not all(row["alike"] for row in results["objectives"])
    title = f"{objective_name(results['objective'])}: reference against aligned, equal seeds"
    table = Table(title=title, caption="win rate: share of clips scored above the reference's, ties half; "
                  "displacement: share of held-out chosen clips that became less likely"
                  + ("; *: other settings or held-out pairs, no comparison" if apart else ""))  # fmt: skip
    table.add_column("run", no_wrap=True)
    parts = parts_of(results["objectives"])
    moved = [f"displacement, {part}" for part in parts]
    for name in ("β", "steps", "reward", "win rate", "displacement", *moved):
        table.add_column(name, justify="right", no_wrap=True)
    for row in results["objectives"]:
        style = "bold" if row["run"] == results["run"] else None
        cells = [
            _beta(row),
            f"{row['steps']:,}",
            _reward(row),
            _share(row, "win_rate"),
            _share(row, "displacement"),
            *(_share((row.get(PARTS) or {}).get(part) or {}, "displacement") for part in parts),
        ]
        table.add_row(escape(row["run"]) + ("" if row["alike"] else " *"), *cells, style=style)
    return table


def _beta(row: dict) -> str:
    return number(row.get("beta"))


def _reward(row: dict) -> str:
    reward = row.get("reward")
    totals = [reward[side]["total"] for side in ("reference", "aligned")] if reward else []
    return " → ".join(f"{total:.3f}" if is_number(total) else "–" for total in totals) or "–"


def _share(row: dict, name: str) -> str:
    share = row.get(name)
    if not share or not is_number(share["value"]):
        return "–"
    return f"{percent(share['value'])} ({percent(share['low'])}–{percent(share['high'])})"
