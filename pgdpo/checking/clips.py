"""Clips, each decoded to its end: whether they can be trained on, and whether the two of a pair are alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pgdpo.data.buckets import Size, choose_bucket, size_name
from pgdpo.data.clips import check_mask
from pgdpo.data.files import sha256_of
from pgdpo.data.locations import fetch, is_url
from pgdpo.data.manifest import CheckedRow
from pgdpo.data.schema import SIDES
from pgdpo.data.video import VideoInfo, verify_video
from pgdpo.errors import InputError
from pgdpo.problems import Problem, shown

FPS_TOLERANCE = 0.002  # relative: 24 is said of 24000/1001


@dataclass(frozen=True)
class Clip:
    """A clip as decoded; `error` says why it could not be."""

    path: Path
    info: VideoInfo = VideoInfo(0, 0, 0.0, 0, "")
    sha256: str = ""
    error: str = ""


def inspect_clips(rows: Sequence[CheckedRow], advance: Callable[[], None]) -> dict[str, Clip]:
    """Location -> Clip for all clips of `rows`, decoded in threads; `advance` is called after each."""
    locations = clips_of(rows)
    found: dict[str, Clip] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for location, clip in zip(locations, pool.map(_inspect, locations), strict=True):
            found[location] = clip
            advance()
    return found


def clips_of(rows: Sequence[CheckedRow]) -> list[str]:
    """Where the clips of `rows` lie, each once."""
    return sorted({row.clips[side] for row in rows for side in SIDES})


def _inspect(location: str) -> Clip:
    path = Path(location)
    try:
        path = fetch(location) if is_url(location) else path
        return Clip(path, verify_video(path), sha256_of(path))
    except InputError as error:
        return Clip(path, error=str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return Clip(path, error=f"cannot be read ({error.strerror or error})")


def clip_problems(
    rows: Sequence[CheckedRow], clips: Mapping[str, Clip], sizes: Sequence[Size]
) -> Iterator[Problem]:
    """What is wrong with each row's clips. `sizes`: what the configuration asks for; none where it is unknown."""
    for row in rows:
        pair = {side: clips[row.clips[side]] for side in SIDES}
        broken = False
        for side, clip in pair.items():
            if clip.error:
                broken = True
                mend = "fetch it again or leave it out"
                yield _about(row, side, clip.error, "a clip that decodes to its end", mend)
                continue
            yield from _against_row(row, side, clip)
            yield from _against_sizes(row, side, clip.info, sizes)
        if not broken:
            yield from _alike(row, pair["chosen"], pair["rejected"])
            yield from _mask(row, pair["chosen"].info)


def misfit(info: VideoInfo, sizes: Sequence[Size]) -> str | None:
    """Why a clip can be cut to none of `sizes`; None if it can, or there are none."""
    if not sizes or choose_bucket(sizes, info) is not None:
        return None
    least = min(size[0] for size in sizes)
    if info.num_frames < least:
        return f"{info.num_frames} frames, and at least {least} are asked for"
    return f"{size_name((info.num_frames, info.height, info.width))} fits no bucket: too long, or half would be cut off"


def _about(
    row: CheckedRow, side: str, what: str, allowed: str, mend: str, severity: str = "error"
) -> Problem:
    value = row.values[side]
    what = f"`{side}` of pair `{row.values['id']}`, {shown(value)}: {what}"
    return row.problem(what, key=side, value=value, allowed=allowed, suggestion=mend, severity=severity)


def _against_row(row: CheckedRow, side: str, clip: Clip) -> Iterator[Problem]:
    digest = row.values.get(f"sha256_{side}")
    if digest is not None and digest != clip.sha256:
        yield row.problem(
            f"`{side}` of pair `{row.values['id']}`: its SHA-256 is {clip.sha256[:12]}..., not {digest[:12]}...",
            key=f"sha256_{side}",
            value=digest,
            allowed=clip.sha256,
            suggestion="the clip was changed or damaged: fetch it again",
        )
    for key in ("width", "height", "num_frames", "fps"):
        said, is_ = row.values.get(key), getattr(clip.info, key)
        if said is not None and abs(said - is_) > FPS_TOLERANCE * is_:
            yield row.problem(
                f"`{key}` is {said!r}, and `{side}` of pair `{row.values['id']}` has {is_:g}",
                key=key,
                value=said,
                allowed=f"{is_:g}",
                suggestion="the clip was cut or changed: fetch it again, or correct the key (--fix does)",
            )


def _against_sizes(row: CheckedRow, side: str, info: VideoInfo, sizes: Sequence[Size]) -> Iterator[Problem]:
    why = misfit(info, sizes)
    if why is not None:
        allowed = f"{' or '.join(map(size_name, sizes))} (frames x height x width), from the clip's start and middle"
        mend = "ask for fewer frames (data.num_frames), add a bucket, or leave the row out (clips are never padded)"
        yield _about(row, side, why, allowed, mend)
    elif sizes:
        _, height, width = sizes[choose_bucket(sizes, info)]
        if info.height < height or info.width < width:
            what = f"{info.width}x{info.height} pixels, and {width}x{height} are trained on: it is enlarged"
            mend = "take smaller sizes (data.width and data.height, or data.buckets), or larger clips"
            yield _about(row, side, what, f"{width}x{height} pixels or more", mend, "warning")


def _alike(row: CheckedRow, chosen: Clip, rejected: Clip) -> Iterator[Problem]:
    """Chosen and rejected must differ in what was judged, not in size, rate or length."""
    for key in ("width", "height", "num_frames", "fps"):
        first, second = getattr(chosen.info, key), getattr(rejected.info, key)
        if abs(first - second) > (FPS_TOLERANCE * first if key == "fps" else 0):
            yield row.problem(
                f"pair `{row.values['id']}`: {key} is {first:g} in chosen and {second:g} in rejected",
                key=key,
                value=[first, second],
                allowed="one value in both clips of a pair",
                suggestion="re-encode the pair (--fix does), or leave it out",
            )
    if chosen.sha256 == rejected.sha256 and row.clips["chosen"] != row.clips["rejected"]:
        what = "the same bytes as `chosen`: the pair teaches nothing"
        yield _about(row, "rejected", what, "another clip than `chosen`", "leave the row out", "warning")


def _mask(row: CheckedRow, info: VideoInfo) -> Iterator[Problem]:
    location = row.clips.get("mask")
    if location is None:
        return
    try:
        check_mask(fetch(location) if is_url(location) else Path(location), info)
    except InputError as error:
        allowed = f"a picture of {info.width}x{info.height} pixels, or a clip like the pair's"
        yield _about(row, "mask", str(error), allowed, "make it anew, or leave the key out")
