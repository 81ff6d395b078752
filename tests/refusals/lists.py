"""Inputs with groups, and with captions of their own, that are prepared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from pgdpo.config.read import load_config
from pgdpo.data.shards import prompt_key
from tests.checking.broken_inputs import write_clips
from tests.refusals.making import Place, good_row, rows
from tests.worlds import run_pgdpo


def prepared_groups(
    *overrides: str, samples: Sequence[dict], also: dict | None = None
) -> Callable[[Place], list[str]]:
    """Two groups whose samples have these keys, prepared."""

    def build(place: Place) -> list[str]:
        write_clips(place.folder / "clips")
        clips = [
            {"clip": f"clips/{name}.mp4", **each}
            for name, each in zip(("0a", "0b", "1a"), samples, strict=False)
        ]
        groups = [{"id": name, "prompt": "red", "samples": clips, **(also or {})} for name in ("0", "1")]
        own = rows(place, groups)
        run_pgdpo("prepare", place.config, *own)
        return [*own, *overrides]

    return build


def passed_over(place: Place) -> list[str]:
    """Data of a version that did not read a rejected clip's own caption."""
    write_clips(place.folder / "clips")
    own = rows(place, [good_row("0") | {"caption_rejected": "a blue dot"}, good_row("1")])
    run_pgdpo("prepare", place.config, *own)
    file = load_config(place.config, own).prepared_folder("train") / "index.json"
    index = json.loads(file.read_text())
    del index["text"]["prompts"][prompt_key("a blue dot")]
    file.write_text(json.dumps(index))
    return own


def half_heard(place: Place) -> list[str]:
    """Two rows of which the index says that the clips of one have sound, for ranks that share weights."""
    write_clips(place.folder / "clips")
    own = rows(place, [good_row("0"), good_row("1")])
    run_pgdpo("prepare", place.config, *own)
    file = load_config(place.config, own).prepared_folder("train") / "index.json"
    index = json.loads(file.read_text())
    index["streams"] = ["video", "audio"]
    for row, heard in zip(index["pairs"], (True, False), strict=True):
        row["sound"] = heard
    file.write_text(json.dumps(index))
    return [*own, "train.zero_stage=3"]
