"""The rows that `make` is given, and what is taken of their clips: frames and sound of one span."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgdpo.config import Config
from pgdpo.data.clips import PairPlan, Sampling, check_clip
from pgdpo.files.locations import clip_location, folder_of
from pgdpo.files.tables import Record, read_records
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import SPAN_MARK
from pgdpo.video import Sound, SoundFormat, probe_video, read_frames, read_sound

TRACK = SoundFormat(
    48000, 2
)  # of all clips that are made, whatever their own was: it tells none from another


@dataclass(frozen=True)
class Source:
    """One row of the list: what a pair is made from."""

    id: str
    prompt: str
    video: str | None


def read_sources(source: str, *, needs_video: bool) -> Iterator[Source]:
    """Rows of the list. Raises InputError naming file, line, key and value."""
    seen = set()
    for record in _records(source):
        where, values = f"{source}:{record.line}", record.values
        for key in ("id", "prompt", *(["video"] if needs_video else [])):
            if not isinstance(values.get(key), str) or (key != "prompt" and not values[key].strip()):
                raise InputError(
                    f"{where}: `{key}` is {values.get(key)!r}; expected text: a row needs id, prompt, video"
                )
        if values["id"] in seen or Path(values["id"]).name != values["id"]:
            raise InputError(
                f"{where}: `id` is {values['id']!r}; it names files: use each once, without slashes"
            )
        seen.add(values["id"])
        try:
            video = clip_location(values["video"], folder_of(source)) if needs_video else None
        except ValueError as error:
            raise InputError(f"{where}: `video` is {values['video']!r}: {error}") from error
        if video is not None and not Path(video).is_file():
            raise InputError(f"{where}: `video` is {values['video']!r}: no file at {video}")
        yield Source(values["id"], values["prompt"], video)
    if not seen:
        raise InputError(f"{source}: no rows; each needs id, prompt, video")


def _records(source: str) -> Iterator[Record]:
    try:
        for record in read_records(source):
            if not isinstance(record, Record):
                raise InputError(str(record))
            yield record
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{source}: cannot be read ({reason}): SOURCE is a JSONL, CSV or Parquet file with id, prompt and video"
        ) from error


def plan_of(config: Config, row: Source, number: int) -> PairPlan:
    """What is taken of a row's clip for its pair of that number: as `data` asks for it. Raises InputError."""
    data = config.data
    sampling, size = Sampling.of(data, config.fps), (data.num_frames, data.height, data.width)
    info = probe_video(row.video)
    check_clip(info, size, sampling)
    name = f"{row.id}{SPAN_MARK}{number % data.pairs_per_row + 1}"
    return PairPlan(
        {"chosen": info}, sampling, size, sampling.first(name, info.frames_at(config.fps), size[0])
    )


def frames_of(config: Config, row: Source, number: int) -> tuple[np.ndarray, PairPlan]:
    """(uint8 frames [F, H, W, 3], what was taken)."""
    plan = plan_of(config, row, number)
    return read_frames(plan.like, plan.numbers(plan.like), plan.size[1:]), plan


def sound_of(plan: PairPlan, seconds: float | None = None, fmt: SoundFormat = TRACK) -> Sound | None:
    """The sound of what is taken, or of so many seconds from there on; None where the clip has none. Raises InputError
    for a track that ends before."""
    if plan.like.sound is None:
        return None
    seconds = plan.size[0] / plan.rate if seconds is None else seconds
    return read_sound(plan.like, plan.first / plan.rate, seconds, fmt)


def rng_of(config: Config, row: Source, number: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{config.make.seed}:{row.id}:{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:8], "little")))
