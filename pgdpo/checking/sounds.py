"""The sound of a row's clips, where the model makes sound: what `prepare` refuses, and what it takes and a listener
would not expect."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from pgdpo.checking.clips import Clip, about
from pgdpo.data.buckets import Size
from pgdpo.data.clips import PairPlan, Sampling, bucket_of, planned, unlike
from pgdpo.data.preparing.sounds import LATE, treatment
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.manifest import CheckedRow, spread
from pgdpo.rows.schema import worded
from pgdpo.video import VideoInfo
from pgdpo.video.listen import missing

ALLOWED = "sound in every clip of a row or in none, as long as what is taken of the picture"
MEND = "give the clip such a track, leave the row out, or train on the picture alone (model.audio: false)"


def sound_problems(
    rows: Sequence[CheckedRow], clips: Mapping[str, Clip], sizes: Sequence[Size], sampling: Sampling
) -> Iterator[Problem]:
    """What is wrong with the sound of each row whose clips decode."""
    for row in rows:
        own = {side: clips[row.clips[side]] for side in row.sides}
        if any(clip.error for clip in own.values()):
            continue
        infos = {side: clip.info for side, clip in own.items()}
        if wrong := sound_misfit(row, infos, sizes, sampling):
            yield about(row, *wrong, ALLOWED, MEND)
        for side, clip in own.items():
            if clip.loudest == 0:
                what = "its sound is silence from beginning to end"
                yield about(row, side, what, "something to hear, or no track", MEND, "warning")
            elif clip.info.sound is not None and clip.info.sound.start > LATE:
                what = f"its sound begins {clip.info.sound.start:.2g} s after its picture, and is silence until then"
                yield about(row, side, what, f"up to {LATE} s", "look whether they are in step", "warning")


def sound_misfit(
    row: CheckedRow, infos: Mapping[str, VideoInfo], sizes: Sequence[Size], sampling: Sampling
) -> tuple[str, str] | None:
    """(the side, why `prepare` refuses the row for its sound); None where it does not. All tracks decode."""
    silent = [side for side, info in infos.items() if info.sound is None]
    if silent and len(silent) < len(infos):
        heard = next(side for side in infos if side not in silent)
        return silent[0], f"has no sound, and {worded(heard)} has"
    for plan in _plans(row, infos, sizes, sampling) if not silent else ():
        for side, info in infos.items():
            try:
                missing(info, plan.span[1])
            except InputError as error:
                what, _, _ = str(error).removeprefix(f"{info.path}: ").partition(": give ")
                return side, what
    return None


def heard_in(
    rows: Sequence[CheckedRow], clips: Mapping[str, Clip], sizes: Sequence[Size], sampling: Sampling
) -> Iterator[str]:
    """What the sound is of each row that can be prepared; empty of one without."""
    for row in rows:
        own = [clips[row.clips[side]] for side in row.sides]
        if any(clip.error for clip in own):
            continue
        infos = {side: clip.info for side, clip in zip(row.sides, own, strict=True)}
        for plan in _plans(row, infos, sizes, sampling):
            with contextlib.suppress(InputError):
                yield treatment(row.values["id"], plan)


def _plans(
    row: CheckedRow, infos: Mapping[str, VideoInfo], sizes: Sequence[Size], sampling: Sampling
) -> list[PairPlan]:
    """Which parts of the clips are taken; none where their pictures are refused."""
    if not sizes or any(unlike(infos)):
        return []
    try:
        size = sizes[bucket_of(row.values["id"], infos, sizes, sampling)]
        return [planned(span.values["id"], infos, size, sampling) for span in spread([row], sampling.spans)]
    except InputError:
        return []
