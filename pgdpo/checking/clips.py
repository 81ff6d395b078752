"""Clips, each decoded to its end: whether they can be trained on, and whether those of a row are alike."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pgdpo.data.buckets import Size, size_name
from pgdpo.data.clips import (
    Sampling,
    bucket_of,
    check_clip,
    check_mask,
    planned,
    unlike,
    unsaid,
)
from pgdpo.files.atomic import sha256_of
from pgdpo.files.locations import fetch, is_url
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, shown
from pgdpo.rows.manifest import SPAN_MARK, CheckedRow, spread
from pgdpo.rows.schema import SAMPLES, key_of, said_of, spoken, titled, worded
from pgdpo.video import VideoInfo, verify_video
from pgdpo.video.listen import loudest


@dataclass(frozen=True)
class Clip:
    """A clip as decoded; `error` says why it could not be. `loudest`: of its sound, 0 to 1, where that was listened to
    and there is any."""

    path: Path
    info: VideoInfo = VideoInfo(0, 0, 0.0, 0, "")
    sha256: str = ""
    error: str = ""
    here: bool = True  # or behind a URL that gives nothing
    loudest: float | None = None


def inspect_clips(
    rows: Sequence[CheckedRow], advance: Callable[[], None], *, listens: bool = False
) -> dict[str, Clip]:
    """Location -> Clip for all clips of `rows`, decoded in threads, their sound too where the check `listens`;
    `advance` is called after each."""
    locations = clips_of(rows)
    found: dict[str, Clip] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for location, clip in zip(
            locations, pool.map(partial(_inspect, listens=listens), locations), strict=True
        ):
            found[location] = clip
            advance()
    return found


def clips_of(rows: Sequence[CheckedRow]) -> list[str]:
    """Where the clips of `rows` lie, each once."""
    return sorted({row.clips[side] for row in rows for side in row.sides})


def _inspect(location: str, listens: bool) -> Clip:
    path = Path(location)
    if is_url(location):
        try:
            path = fetch(location)
        except (InputError, OSError) as error:
            return Clip(path, error=str(error), here=False)
    try:
        info = verify_video(path)
        return Clip(path, info, sha256_of(path), loudest=loudest(info) if listens else None)
    except InputError as error:
        return Clip(path, error=str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return Clip(path, error=f"cannot be read ({error.strerror or error})")


def clip_problems(
    rows: Sequence[CheckedRow], clips: Mapping[str, Clip], sizes: Sequence[Size], sampling: Sampling
) -> Iterator[Problem]:
    """What is wrong with each row's clips. `sizes`: what the configuration asks for; none where it is unknown."""
    for row in rows:
        own = {side: clips[row.clips[side]] for side in row.sides}
        for side, clip in own.items():
            if clip.error:
                mend = "fetch it again or leave it out"
                yield about(row, side, clip.error, "a clip that decodes to its end", mend)
        if any(clip.error for clip in own.values()):
            continue
        infos = {side: clip.info for side, clip in own.items()}
        for odd in (*unlike(infos), *unsaid(row.values, infos)):
            what = f"{titled(row.values['id'], row.sides)}: {odd.what}"
            yield row.problem(what, key=odd.key, value=odd.value, allowed=odd.allowed, suggestion=odd.mend)
        yield from _hashes(row, own)
        yield from _against_sizes(row, infos, sizes, sampling)
        yield from _mask(row, infos[row.sides[0]])


def misfit(info: VideoInfo, sizes: Sequence[Size], sampling: Sampling) -> str | None:
    """Why a clip can be cut to none of `sizes`; None if it can, or there are none."""
    try:
        if sizes:
            check_clip(info, (min(size[0] for size in sizes), 0, 0), sampling)
            size = sizes[bucket_of("", {"chosen": info}, sizes, sampling)]
            planned(f"{SPAN_MARK}1", {"chosen": info}, size, sampling)
    except InputError as error:
        return str(error).removeprefix(f"{info.path}: ").removeprefix(f"pair `{SPAN_MARK}1`: ")
    return None


def about(row: CheckedRow, side: str, what: str, allowed: str, mend: str, severity: str = "error") -> Problem:
    """A problem of one of a row's files."""
    value = said_of(row.values, side)
    what = f"{spoken(row.values['id'], row.sides, side)}, {shown(value)}: {what}"
    return row.problem(
        what, key=key_of(side), value=value, allowed=allowed, suggestion=mend, severity=severity
    )


def _hashes(row: CheckedRow, own: Mapping[str, Clip]) -> Iterator[Problem]:
    there: dict[str, str] = {}
    for side, clip in own.items():
        digest = said_of(row.values, side, "sha256")
        if digest is not None and digest != clip.sha256:
            name = spoken(row.values["id"], row.sides, side)
            yield row.problem(
                f"{name}: its SHA-256 is {clip.sha256[:12]}..., not {digest[:12]}...",
                key=key_of(side, "sha256"),
                value=digest,
                allowed=clip.sha256,
                suggestion="the clip was changed or damaged: fetch it again",
            )
        first = there.setdefault(clip.sha256, side)
        if first == side or row.clips[first] == row.clips[side]:
            continue
        if row.kind == "pair":
            what = "the same bytes as `chosen`: the pair teaches nothing"
            yield about(row, side, what, "another clip than `chosen`", "leave the row out", "warning")
        else:
            what = f"the same bytes as {worded(first)}"
            yield about(row, side, what, "each clip once", "leave one of the two out", "warning")


def _against_sizes(
    row: CheckedRow, infos: Mapping[str, VideoInfo], sizes: Sequence[Size], sampling: Sampling
) -> Iterator[Problem]:
    fits = True
    for side, info in infos.items():
        try:
            check_clip(info, (min((size[0] for size in sizes), default=0), 0, 0), sampling)
        except InputError as error:
            fits = False
            allowed = f"{' or '.join(map(size_name, sizes))} (frames x height x width)"
            mend = "ask for fewer frames (data.num_frames), another rate (data.fps), or leave the row out"
            yield about(row, side, str(error).removeprefix(f"{info.path}: "), allowed, mend)
        if info.variable:
            how = "one by one (data.fps)" if sampling.fps is None else "by their times"
            what = f"frames are missing or of unequal length, most for 1/{info.fps:g} s: they are taken {how}"
            yield about(row, side, what, "frames of one length", "look at the clip", "warning")
    if not sizes or not fits:
        return
    try:
        size = sizes[bucket_of(row.values["id"], infos, sizes, sampling)]
        for span in spread([row], sampling.spans):
            planned(span.values["id"], infos, size, sampling)
    except InputError as error:
        yield row.problem(
            str(error), key="data.clip", value=sampling.clip, allowed="clips that are long enough"
        )
        return
    if not any(unlike(infos)):
        yield from _lengths(row, [info.frames_at(sampling.fps) for info in infos.values()])
    info, (_, height, width) = infos[row.sides[0]], size
    if info.height < height or info.width < width:
        what = f"{info.width}x{info.height} pixels, and {width}x{height} are trained on: it is enlarged"
        mend = "take smaller sizes (data.width and data.height, or data.buckets), or larger clips"
        yield about(row, row.sides[0], what, f"{width}x{height} pixels or more", mend, "warning")


def _lengths(row: CheckedRow, lengths: Sequence[int]) -> Iterator[Problem]:
    """Clips that give other numbers of frames."""
    if len(set(lengths)) == 1:
        return
    allowed, mend = "clips of one length", "look whether one was cut"
    if row.kind == "pair":
        what = f"its clips give {lengths[0]} and {lengths[1]} frames: {min(lengths)} from the start are common to both"
        yield about(row, "rejected", what, allowed, mend, "warning")
    else:
        name, span = titled(row.values["id"], row.sides), f"{min(lengths)} to {max(lengths)} frames"
        what = f"{name}: its clips give {span}: {min(lengths)} from the start are common to all"
        yield row.problem(
            what, key=SAMPLES, value=list(lengths), allowed=allowed, suggestion=mend, severity="warning"
        )


def views_of(
    rows: Sequence[CheckedRow], clips: Mapping[str, Clip], sizes: Sequence[Size], sampling: Sampling
) -> Iterator[tuple[float, str]]:
    """(frames a second, what is done to them) of each row that can be prepared."""
    sound = [row for row in rows if not any(clips[row.clips[side]].error for side in row.sides)]
    for row in spread(sound, sampling.spans):
        infos = {side: clips[row.clips[side]].info for side in row.sides}
        if any(unlike(infos)):
            continue
        with contextlib.suppress(InputError):
            name = row.values["id"]
            plan = planned(name, infos, sizes[bucket_of(name, infos, sizes, sampling)], sampling)
            yield plan.like.fps, plan.view


def _mask(row: CheckedRow, info: VideoInfo) -> Iterator[Problem]:
    location = row.clips.get("mask")
    if location is None:
        return
    try:
        check_mask(fetch(location) if is_url(location) else Path(location), info, row.kind)
    except InputError as error:
        allowed = f"a picture of {info.width}x{info.height} pixels, or a clip like the {row.kind}'s"
        yield about(row, "mask", str(error), allowed, "make it anew, or leave the key out")
