"""A run's figures by the manifest that pairs come from, where `data.train` names several, and by parts of samples."""

from __future__ import annotations

from collections.abc import Sequence

from pgdpo.messages.formats import is_number, power_of_ten
from pgdpo.report.alarms import tail, tail_mean
from pgdpo.training.panels import PARTS, parts_of

OF_VALUE = ("implicit_accuracy", "margin")
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


def by_part(metrics: list[dict], results: dict, looks: Sequence[dict]) -> dict | None:
    """`rows`, one a part: its name, `gradient_share` at the run's end, and what was measured of held-out data last
    (`pairs`, `displacement` with its interval, `implicit_accuracy`, `margin`; {} where nothing was); `power`: of ten,
    the unit of the margins. None for samples of one part."""
    rows = [
        {
            "name": part,
            "gradient_share": tail_mean(metrics, f"{PARTS}/{part}/gradient_share"),
            "held_out": _held_out(part, results, looks),
        }
        for part in parts_of([*metrics, *looks, results])
    ]
    margins = (row["held_out"].get("margin") for row in rows)
    return {"rows": rows, "power": power_of_ten(margins)} if rows else None


def _held_out(part: str, results: dict, looks: Sequence[dict]) -> dict:
    judged = (results.get(PARTS) or {}).get(part)
    if judged is not None:
        moved = judged["displacement"]
        return {"displacement": moved, **{name: moved[name] for name in ("pairs", *OF_VALUE)}}
    looked = next((row[PARTS][part] for row in reversed(looks) if part in (row.get(PARTS) or {})), None)
    if looked is None:
        return {}
    values = {name: looked[name]["value"] for name in OF_VALUE}
    return {"displacement": looked["displacement"], "pairs": looked["pairs"], **values}


def _parts(metrics: list[dict], name: str) -> list[dict]:
    return [row["sources"][name] for row in metrics if name in (row.get("sources") or {})]


def _mean(metrics: list[dict], name: str, figure: str) -> float | None:
    """Over pairs; None where none of them has the figure."""
    values = [(part[figure], part["pairs"]) for part in _parts(metrics, name) if is_number(part.get(figure))]
    total = sum(pairs for _, pairs in values)
    return sum(value * pairs for value, pairs in values) / total if total else None
