"""The training pairs or groups of `pairs.json` as the page shows them: clips in their order, scores on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pgdpo.messages.formats import in_text, is_number, place, scale_of
from pgdpo.report.budget import Fitted
from pgdpo.report.page import embedded_picture
from pgdpo.rows.schema import SIDES, worded
from pgdpo.video.picture import read_picture

NOT_SHOWN = {"of": 0, "kind": "pair", "sized": "pairs", "pairs": []}  # where nothing is known of the data


def drawn_sides(pair: dict) -> Iterable[str]:
    """Its clips in the order in which they are drawn, the best first."""
    return pair.get("names", SIDES)


def shown_pairs(out: Path, pairs: Sequence[dict], fitted: Fitted) -> list[dict]:
    """Each with its clips embedded; a score lies on one scale for all of them."""
    found = [_scores(pair) for pair in pairs]
    values: dict[str, list[float]] = {}
    for name, scores in (each for one in found for each in one.items()):
        values.setdefault(name, []).extend(scores)
    scales = {name: scale_of(each) for name, each in values.items()}
    return [
        _shown(out, pair, fitted)
        | {
            "scores": [
                {
                    "name": name,
                    "values": own,
                    "at": [round(place(value, scales[name]), 1) for value in own],
                }
                for name, own in scores.items()
            ]
        }
        for pair, scores in zip(pairs, found, strict=True)
    ]


def _scores(pair: dict) -> dict[str, list[float]]:
    """Component -> its score of each clip, in their order, of those that all have as numbers. A group's own `score`
    stands below its clips."""
    first, *others = (pair["about"].get(_scores_key(side)) or {} for side in drawn_sides(pair))
    return {
        name: [value, *(other[name] for other in others)]
        for name, value in first.items()
        if all(is_number(each.get(name)) for each in (first, *others))
        and not (name == "score" and "names" in pair)
    }


def _scores_key(side: str) -> str:
    return f"scores of {worded(side)}"


def _shown(out: Path, pair: dict, fitted: Fitted) -> dict:
    """A pair or group with its clips embedded, and its other columns as text."""
    sides = {side: fitted.shown(out / pair[side], out) for side in drawn_sides(pair)}
    frames, height, width = pair["size"]
    pictures = pair.get("pictures", {})
    drawn = {"segment_labels"} | ({*map(_scores_key, sides)} if _scores(pair) else set())
    return (
        pair
        | sides
        | {
            "clips": [(sides[side], words[0], words[1:]) for side, words in pair.get("names", {}).items()],
            "pictures": [_picture(key, out / name) for key, name in pictures.items()],
            "first": next(iter(sides.values())),
            "size": f"{frames} frames of {width}×{height}",
            "about": {key: in_text(value) for key, value in pair["about"].items() if key not in drawn},
            "segments": pair["about"].get("segment_labels") or [],
        }
    )


def _picture(key: str, path: Path) -> dict:
    return embedded_picture(key, read_picture(path) if path.is_file() else None)
