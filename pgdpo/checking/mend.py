"""`pgdpo check --fix`: a new manifest of the rows that are sound or can be made so; the source is never changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from pgdpo.checking.clips import Clip, misfit
from pgdpo.checking.sounds import sound_misfit
from pgdpo.data.buckets import Size
from pgdpo.data.clips import Sampling, unlike, unsaid
from pgdpo.files.atomic import sha256_of
from pgdpo.files.locations import folder_of, is_url, plain
from pgdpo.files.tables import writer
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.manifest import CheckedRow
from pgdpo.rows.schema import SAMPLES, said_of, worded
from pgdpo.video import SoundFormat, VideoInfo, read_video, write_video
from pgdpo.video.listen import track_of
from pgdpo.video.write import AAC_RATES

FACTS = ("width", "height", "num_frames", "fps", "light")


@dataclass
class Mended:
    """What `mend` did. Rows are named by their id, or by their place where they have none."""

    manifest: str
    kept: int = 0
    reencoded: dict[str, str] = field(default_factory=dict)  # row -> what it was made to be
    corrected: dict[str, str] = field(default_factory=dict)  # row -> keys
    dropped: dict[str, str] = field(default_factory=dict)  # row -> why
    outside: str | None = None  # the folder of clips that lie outside the manifest's

    def as_json(self) -> dict:
        return dict(vars(self))

    def settles(self, problem: Problem) -> bool:
        """Whether the new manifest is without it: its row was left out, or it was of a kind that was mended."""
        name = problem.pair or problem.where
        left_out = name in self.dropped or f"{name} ({problem.where})" in self.dropped
        return left_out or (problem.key in FACTS and (name in self.reencoded or name in self.corrected))


def mend(
    out: str,
    source: str,
    rows: Sequence[CheckedRow],
    clips: Mapping[str, Clip],
    problems: Sequence[Problem],
    sizes: Sequence[Size],
    sampling: Sampling,
    advance: Callable[[], None],
    *,
    listens: bool = False,
) -> Mended:
    """Write `out` (JSONL or Parquet) from the sound `rows` of the manifest `source`.

    Left out: rows with an error in them, with a clip that is missing, damaged, too short or of another hash.
    Re-encoded, all clips of a row so that no codec tells them apart: rows whose clips differ in size, rate or length,
    at the smallest of each, with their sound. `listens`: left out too is what `prepare` refuses for its sound.
    Corrected: what a row says of its clips' size, rate and length.

    Raises InputError if `out` is the source, or no row is left.
    """
    out = str(plain(out))
    if is_url(out):
        raise InputError(f"--fix is {out}: re-encoded clips stand beside it; name a local file")
    if Path(out).resolve() == Path(source).resolve():
        raise InputError(f"--fix is {out}, the manifest that is checked: name another file")
    result = Mended(out)
    sound = {row.problem("").where: row.values["id"] for row in rows}
    for problem in problems:
        of_row = problem.line is not None or problem.row is not None
        if problem.severity == "error" and of_row and problem.file == source and problem.where not in sound:
            name = problem.pair or problem.where
            twice = name in sound.values()  # an id that a sound row has too
            result.dropped.setdefault(f"{name} ({problem.where})" if twice else name, problem.what)
    with writer(out) as write:
        for row in rows:
            values = _mended(row, clips, sizes, sampling, result, listens=listens)
            if values is not None:
                write(values)
                result.kept += 1
            advance()
        if not result.kept:
            raise InputError(f"--fix: none of the rows can be mended; {out} was not written")
    return result


def _mended(
    row: CheckedRow,
    clips: Mapping[str, Clip],
    sizes: Sequence[Size],
    sampling: Sampling,
    result: Mended,
    *,
    listens: bool,
) -> dict | None:
    """The row as it stands in the new manifest; None if it is dropped."""
    name, own = row.values["id"], {side: clips[row.clips[side]] for side in row.sides}
    why = _unmendable(row, own, sizes, sampling)
    infos = {side: clip.info for side, clip in own.items()}
    if why is None and listens and (wrong := sound_misfit(row, infos, sizes, sampling)):
        why = f"{worded(wrong[0])}: {wrong[1]}"
    if why is None and any(unlike(infos)):
        why = _not_made_alike(row, infos)
    if why is None and any(unlike(infos)):
        try:
            own = _reencode(row, own, Path(result.manifest), sizes, sampling, listens=listens)
            info = own[row.sides[0]].info
            result.reencoded[name] = f"{info.width}x{info.height}, {info.num_frames} frames, {info.fps:g} fps"
            if _ends_elsewhere(row, infos, info):
                row = replace(row, **_without_end(row))
                result.reencoded[name] += ", without `last_image`: they were cut before it"
        except InputError as error:
            why = str(error)
    if why is not None:
        result.dropped[name] = why
        return None
    infos = {side: clip.info for side, clip in own.items()}
    facts = {odd.key: _fact(odd.key, infos) for odd in unsaid(row.values, infos)}
    wrong = list(facts)
    if wrong and name not in result.reencoded:
        result.corrected[name] = ", ".join(
            f"{key} {row.values[key]:g} -> {'left out' if facts[key] is None else f'{facts[key]:g}'}"
            for key in wrong
        )
    named = {key: _relative(row, key, own, result) for key in row.clips}
    hashes = {side: clip.sha256 for side, clip in own.items() if said_of(row.values, side, "sha256")}
    values = {**row.values, **{key: facts[key] for key in wrong}}
    if row.kind == "pair":
        return {**values, **named, **{f"sha256_{side}": digest for side, digest in hashes.items()}}
    samples = [
        sample | {"clip": named.pop(side)} | ({"sha256": hashes[side]} if side in hashes else {})
        for side, sample in zip(row.sides, values[SAMPLES], strict=True)
    ]
    return {**values, SAMPLES: samples, **named}


def _ends_elsewhere(row: CheckedRow, before: Mapping[str, VideoInfo], after: VideoInfo) -> bool:
    """Whether one of a row's clips, cut to what is common, no longer ends with the picture that the row names."""
    longest = max(info.duration for info in before.values())
    return "last_image" in row.clips and longest - after.duration > 1 / after.fps


def _without_end(row: CheckedRow) -> dict[str, object]:
    """The fields of a row that names no last picture."""
    values = {key: value for key, value in row.values.items() if key != "last_image"}
    clips = {key: clip for key, clip in row.clips.items() if key != "last_image"}
    return {"record": replace(row.record, values=values), "clips": clips}


def _unmendable(
    row: CheckedRow, own: Mapping[str, Clip], sizes: Sequence[Size], sampling: Sampling
) -> str | None:
    for side, clip in own.items():
        digest = said_of(row.values, side, "sha256")
        if clip.error:
            return f"{worded(side)}: {clip.error}"
        if digest is not None and digest != clip.sha256:
            return f"{worded(side)}: its SHA-256 is {clip.sha256[:12]}..., the row says {digest[:12]}..."
        if why := misfit(clip.info, sizes, sampling):
            return f"{worded(side)}: {why}"
    return None


def _fact(key: str, infos: Mapping[str, VideoInfo]) -> float | None:
    """What a row may say of its clips; None where they are not the same."""
    first, *others = (getattr(info, key) for info in infos.values())
    return first if key != "num_frames" or all(other == first for other in others) else None


def _not_made_alike(row: CheckedRow, infos: Mapping[str, VideoInfo]) -> str | None:
    """Why a row whose clips differ is not encoded again."""
    if not all(info.fps for info in infos.values()):
        return "pictures of two sizes or lights: make them alike by hand"
    if row.clips.get("mask") is not None:
        return "its clips differ, and its mask would have to be made anew with them"
    return None


def _reencode(
    row: CheckedRow,
    own: Mapping[str, Clip],
    manifest: Path,
    sizes: Sequence[Size],
    sampling: Sampling,
    *,
    listens: bool,
) -> dict[str, Clip]:
    """All clips at the smallest size, rate and length, beside the new manifest, named by what they are made of."""
    size = tuple(
        min(getattr(clip.info, key) for clip in own.values()) // 2 * 2 for key in ("height", "width")
    )
    fps = min(clip.info.fps for clip in own.values())
    frames = {}
    for side, clip in own.items():
        frames[side] = read_video(clip.path, fps=fps, size=size)
    length = min(map(len, frames.values()))
    times = tuple(Fraction(number) / Fraction(fps).limit_denominator(1001) for number in range(length))
    info = VideoInfo(size[1], size[0], fps, length, "h264", stored=size[::-1], times=times)
    if why := misfit(info, sizes, sampling):
        raise InputError(f"as a {row.kind} at {fps:g} frames a second: {why}")
    # What is written goes on with silence where a track ends: whether it reaches far enough is seen here alone.
    heard = {side: replace(info, path=clip.path, start=clip.info.start) for side, clip in own.items()}
    if listens and (wrong := sound_misfit(row, heard, sizes, sampling)):
        raise InputError(f"{worded(wrong[0])}: {wrong[1]}")
    fmt = _sound_format(own.values())
    made = {}
    for side, clip in own.items():
        sound = None if fmt is None else track_of(clip.info, length / fps, fmt)
        form = f"{clip.sha256} {size} {fps:g} {length}{'' if sound is None else f' {fmt}'}"
        name = hashlib.sha256(form.encode()).hexdigest()
        path = manifest.parent / f"{manifest.stem}.media" / name[:2] / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames[side][:length], fps, sound=sound)
        made[side] = Clip(path, info, sha256_of(path))
    return made


def _sound_format(clips: Iterable[Clip]) -> SoundFormat | None:
    """The lowest rate and the fewest channels of their tracks that AAC has; None where none has one. Raises InputError
    for a damaged track."""
    tracks = [clip.info.sound for clip in clips if clip.info.sound is not None]
    if not tracks:
        return None
    lowest = min(track.rate for track in tracks)
    rate = max((rate for rate in AAC_RATES if rate <= lowest), default=AAC_RATES[0])
    return SoundFormat(rate, min(2, *(track.channels for track in tracks)))


def _relative(row: CheckedRow, key: str, own: Mapping[str, Clip], result: Mended) -> str:
    """How the new manifest names a clip or mask."""
    location = row.clips[key]
    if key in own and (not is_url(location) or row.values["id"] in result.reencoded):
        location = str(own[key].path)
    if is_url(location):
        return location
    relative = os.path.relpath(location, folder_of(result.manifest))
    if relative.startswith(".."):
        folder = os.path.dirname(os.path.abspath(location))
        result.outside = os.path.commonpath([result.outside or folder, folder])
    return Path(relative).as_posix()
