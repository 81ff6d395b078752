"""A run's figures by the manifest that pairs come from, where `data.train` names several."""

from __future__ import annotations

from pgdpo.messages.formats import is_number, power_of_ten
from pgdpo.report.alarms import tail

FIGURES = ("loss", "implicit_accuracy", "margin", "displacement")


def by_source(metrics: list[dict], results: dict) -> dict | None:
    """`rows`, one a manifest: its name, `pairs` that were visited and their `share`, FIGURES at the run's end, and
    `held_out`, what `results` say of it or None; `power`: of ten, the unit of the margins. None for one manifest.
    """
    names = list(dict.fromkeys(name for row in metrics for name in row.get("sources") or {}))
    if not names:
        return None
    pairs = {name: sum(part["pairs"] for part in _parts(metrics, name)) for name in names}
    rows = [
        {
            "name": name,
            "pairs": pairs[name],
            "share": pairs[name] / sum(pairs.values()),
            **{figure: _mean(tail(metrics), name, figure) for figure in FIGURES},
            "held_out": (results.get("sources") or {}).get(name),
        }
        for name in names
    ]
    return {"rows": rows, "power": power_of_ten(row["margin"] for row in rows)}


def _parts(metrics: list[dict], name: str) -> list[dict]:
    return [row["sources"][name] for row in metrics if name in (row.get("sources") or {})]


def _mean(metrics: list[dict], name: str, figure: str) -> float | None:
    """Over pairs; None where none of them has the figure."""
    values = [(part[figure], part["pairs"]) for part in _parts(metrics, name) if is_number(part.get(figure))]
    total = sum(pairs for _, pairs in values)
    return sum(value * pairs for value, pairs in values) / total if total else None
