"""`pgdpo check --fix`: a new manifest of the rows that are sound or can be made so; the source is never changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgdpo.checking.clips import FPS_TOLERANCE, Clip, misfit
from pgdpo.data.buckets import Size
from pgdpo.data.files import sha256_of
from pgdpo.data.locations import folder_of, is_url, plain
from pgdpo.data.manifest import CheckedRow
from pgdpo.data.schema import SIDES
from pgdpo.data.tables import writer
from pgdpo.data.video import VideoInfo, read_video, write_video
from pgdpo.errors import InputError
from pgdpo.problems import Problem

FACTS = ("width", "height", "num_frames", "fps")


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
    advance: Callable[[], None],
) -> Mended:
    """Write `out` (JSONL or Parquet) from the sound `rows` of the manifest `source`.

    Left out: rows with an error in them, with a clip that is missing, damaged, too short or of another hash.
    Re-encoded, both clips alike so that no codec tells them apart: pairs that differ in size, rate or length,
    at the smaller of each. Corrected: what a row says of its clips' size, rate and length.

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
            values = _mended(row, clips, sizes, result)
            if values is not None:
                write(values)
                result.kept += 1
            advance()
        if not result.kept:
            raise InputError(f"--fix: none of the rows can be mended; {out} was not written")
    return result


def _mended(row: CheckedRow, clips: Mapping[str, Clip], sizes: Sequence[Size], result: Mended) -> dict | None:
    """The row as it stands in the new manifest; None if it is dropped."""
    name, pair = row.values["id"], {side: clips[row.clips[side]] for side in SIDES}
    why = _unmendable(row, pair, sizes)
    if why is None and not _alike(pair):
        try:
            pair = _reencode(pair, Path(result.manifest), sizes)
            result.reencoded[name] = "{0.width}x{0.height}, {0.num_frames} frames, {0.fps:g} fps".format(
                pair["chosen"].info
            )
        except InputError as error:
            why = str(error)
    if why is not None:
        result.dropped[name] = why
        return None
    facts = {key: getattr(pair["chosen"].info, key) for key in FACTS if row.values.get(key) is not None}
    wrong = [key for key, fact in facts.items() if abs(row.values[key] - fact) > FPS_TOLERANCE * fact]
    if wrong and name not in result.reencoded:
        result.corrected[name] = ", ".join(f"{key} {row.values[key]:g} -> {facts[key]:g}" for key in wrong)
    named = {key: _relative(row, key, pair, result) for key in row.clips}
    hashes = {
        f"sha256_{side}": clip.sha256 for side, clip in pair.items() if row.values.get(f"sha256_{side}")
    }
    return {**row.values, **{key: facts[key] for key in wrong}, **named, **hashes}


def _unmendable(row: CheckedRow, pair: Mapping[str, Clip], sizes: Sequence[Size]) -> str | None:
    for side, clip in pair.items():
        digest = row.values.get(f"sha256_{side}")
        if clip.error:
            return f"{side}: {clip.error}"
        if digest is not None and digest != clip.sha256:
            return f"{side}: its SHA-256 is {clip.sha256[:12]}..., the row says {digest[:12]}..."
        if why := misfit(clip.info, sizes):
            return f"{side}: {why}"
    return None


def _alike(pair: Mapping[str, Clip]) -> bool:
    first, second = (clip.info for clip in pair.values())
    same = (first.width, first.height, first.num_frames) == (second.width, second.height, second.num_frames)
    return same and abs(first.fps - second.fps) <= FPS_TOLERANCE * first.fps


def _reencode(pair: Mapping[str, Clip], manifest: Path, sizes: Sequence[Size]) -> dict[str, Clip]:
    """Both clips at the smaller size, rate and length, beside the new manifest, named by what they are made of."""
    size = tuple(
        min(getattr(clip.info, key) for clip in pair.values()) // 2 * 2 for key in ("height", "width")
    )
    fps = min(clip.info.fps for clip in pair.values())
    frames = {}
    for side, clip in pair.items():
        at_rate = None if abs(clip.info.fps - fps) <= FPS_TOLERANCE * fps else fps
        frames[side] = read_video(clip.path, fps=at_rate, size=size)
    length = min(map(len, frames.values()))
    info = VideoInfo(size[1], size[0], fps, length, "h264")
    if why := misfit(info, sizes):
        raise InputError(f"as a pair at {fps:g} frames a second: {why}")
    made = {}
    for side, clip in pair.items():
        form = f"{clip.sha256} {size} {fps:g} {length}"
        name = hashlib.sha256(form.encode()).hexdigest()
        path = manifest.parent / f"{manifest.stem}.media" / name[:2] / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames[side][:length], fps)
        made[side] = Clip(path, info, sha256_of(path))
    return made


def _relative(row: CheckedRow, key: str, pair: Mapping[str, Clip], result: Mended) -> str:
    """How the new manifest names a clip or mask."""
    location = row.clips[key]
    if key in pair and not is_url(location) or key in pair and row.values["id"] in result.reencoded:
        location = str(pair[key].path)
    if is_url(location):
        return location
    relative = os.path.relpath(location, folder_of(result.manifest))
    if relative.startswith(".."):
        folder = os.path.dirname(os.path.abspath(location))
        result.outside = os.path.commonpath([result.outside or folder, folder])
    return Path(relative).as_posix()
