"""VideoDPO (arXiv 2412.14167): metadata.json lists clips, pair.json names two of them by their place in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgdpo.files.bounded import load_json
from pgdpo.files.locations import folder_of, open_binary
from pgdpo.files.tables import Record
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Media,
    Options,
    Reading,
    is_missing,
    number,
    ordered,
    scored,
    wrong,
)
from pgdpo.rows.schema import TIE

WINNER_SHARE = {0: 1.0, 1: 0.0, 0.5: TIE}  # of video1, by `label`, the place of the preferred clip


def read(source: str, options: Options) -> Reading:
    folder = folder_of(source) if source.endswith(".json") else source.rstrip("/")
    pair_file = source if source.endswith(".json") else f"{folder}/pair.json"
    clips, pairs = _list_in(f"{folder}/metadata.json"), _list_in(pair_file)
    used = {pair.get(key) for pair in pairs if isinstance(pair, dict) for key in ("video1", "video2")}
    unused = len(clips) - len(used & set(range(len(clips))))
    left_over = [f"{unused} clips of metadata.json stand in no pair"] if unused else []
    records = [
        Record(pair_file, pair if isinstance(pair, dict) else {}, row=number)
        for number, pair in enumerate(pairs, start=1)
    ]
    return Reading(
        len(records), (item for record in records for item in _row(record, clips, folder)), left_over
    )


def _list_in(file: str) -> list:
    try:
        with open_binary(file) as stream:
            content = load_json(stream)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: cannot be read ({' '.join(str(error).split())}): SOURCE is the folder with metadata.json and "
            "pair.json"
        ) from error
    if not isinstance(content, list):
        raise InputError(f"{file}: holds {type(content).__name__}, expected a list")
    return content


def _row(record: Record, clips: list, folder: str) -> Iterator[Found | Problem]:
    sides = []
    for key in ("video1", "video2"):
        place = record.values.get(key)
        known = isinstance(place, int) and 0 <= place < len(clips)
        path = clips[place].get("basic", {}).get("clip_path") if known else None
        if not isinstance(path, str):
            allowed = f"0 to {len(clips) - 1}, the place of a clip with basic.clip_path in metadata.json"
            yield wrong(record, key, place, allowed, "use the two files of one download")
            return
        sides.append((clips[place], Media(path, folder)))
    label = record.values.get("label", 0)
    if label not in WINNER_SHARE:
        yield wrong(
            record, "label", label, "0 (video1 is better), 1 (video2) or 0.5 (a tie)", "mend the label"
        )
        return
    prompt = _prompt(record.values, sides[0][0])
    if prompt is None:
        yield wrong(record, "frame_caption", None, "text, here or in metadata.json", "add the prompt")
        return
    row, swapped = ordered(sides[0][1], sides[1][1], WINNER_SHARE[label])
    scores = [number(clip["basic"].get("score")) for clip, _ in (sides[::-1] if swapped else sides)]
    if None not in scores:
        row |= scored({"score": scores[0]}, {"score": scores[1]}, "score")
    fields = {"pair": record.values, "video1": sides[0][0], "video2": sides[1][0]}
    yield Found(row | {"prompt": prompt}, fields)


def _prompt(pair: dict, clip: dict) -> str | None:
    for caption in (pair.get("frame_caption"), clip.get("misc", {}).get("frame_caption")):
        caption: Any = caption[0] if isinstance(caption, list) and caption else caption
        if isinstance(caption, str) and not is_missing(caption):
            return caption
    return None


FORMAT = Format(
    "videodpo",
    "VideoDPO: pairs by place in a list of clips, with scores where there are some.",
    "a folder with metadata.json and pair.json (or the path of another pair file beside metadata.json)",
    read,
)
