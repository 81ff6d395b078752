"""A row's clips, held against each other and against what the row says, and which part of all of them is taken."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pgdpo.config import DataConfig
from pgdpo.config.data import spans_of
from pgdpo.data.buckets import Size, choose_bucket, size_name
from pgdpo.files.atomic import sha256_of
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import GIVEN, SPAN_MARK, PairRow
from pgdpo.rows.ranked import ends
from pgdpo.rows.schema import kind_of, titled
from pgdpo.video import VideoInfo, probe_video, read_frames
from pgdpo.video.info import SAME_RATE
from pgdpo.video.picture import is_picture, read_image, read_picture
from pgdpo.video.read import too_short

KINDS_SAID = 8
SAID = ("width", "height", "num_frames", "fps")  # what a row may say of both clips
ALIKE = ("width", "height", "fps", "light")  # in which the clips of a row must not differ; lengths are cut
MEND_UNLIKE = (
    "{} must be of one size, rate and light; re-encode {} of them (`pgdpo check --fix` does) or leave the "
    "row out"
)
BOTH = {"pair": ("both clips of a pair", "one"), "group": ("all clips of a group", "some")}
MEND_UNSAID = "the clip was cut or changed; fetch it again or correct the row (`pgdpo check --fix` does)"


@dataclass(frozen=True)
class Sampling:
    """How frames are taken of clips: `fps` frames a second (None: every frame), where in a longer clip, and whether
    slower clips are let through."""

    fps: float | None = None
    clip: str = "first"
    upsample: bool = False

    @property
    def spans(self) -> int:
        """Pairs that a row gives."""
        return spans_of(self.clip)

    @classmethod
    def of(cls, data: DataConfig, fps: float | None) -> Sampling:
        return cls(fps, data.clip, data.upsample)

    def first(self, name: str, there: int, wanted: int) -> int:
        """Where the span of `wanted` frames of pair `name` begins, of `there`. `segments:N` counts in the pair's name.

        Raises InputError where N spans would not be N different ones.
        """
        free = there - wanted
        if self.clip == "middle":
            return free // 2
        if self.clip == "random":
            digest = hashlib.sha256(f"span of {name}".encode()).digest()
            return int.from_bytes(digest[:8], "little") % (free + 1)
        if self.clip.startswith("segments:"):
            count = self.spans
            if free < count - 1:
                raise InputError(
                    f"data.clip is `{self.clip}` and the clips have {there} frames, which is {free + 1} places for "
                    f"{wanted}: take fewer segments, fewer frames (data.num_frames), or leave the row out"
                )
            number = int(name.rpartition(SPAN_MARK)[2]) - 1 if count > 1 else 0
            return number * free // max(count - 1, 1)
        return 0


@dataclass(frozen=True)
class PairPlan:
    """Which frames of a row's clips are taken: `size[0]` at the sampling's rate from `first` on, the same of all."""

    clips: Mapping[str, VideoInfo]  # by side
    sampling: Sampling
    size: Size
    first: int

    @property
    def like(self) -> VideoInfo:
        """The first of them: size, rate and light are those of all."""
        return next(iter(self.clips.values()))

    @property
    def rate(self) -> float:
        """Frames a second of what is taken."""
        return float(self.like.rate_at(self.sampling.fps) or self.like.fps)

    @property
    def span(self) -> list[float]:
        """Seconds of the clips from which to which it is taken."""
        rate = self.rate or 1.0
        return [round(self.first / rate, 4), round((self.first + self.size[0]) / rate, 4)]

    @property
    def whole(self) -> bool:
        """Whether that is all of the clips, but for a frame."""
        most = max(info.frames_at(self.sampling.fps) for info in self.clips.values())
        return most - self.size[0] <= 1

    def reaches(self, frame: int) -> bool:
        """Whether frame 0, or -1, of what is taken is that of the clips themselves, give or take one: what a row's
        `image`, or `last_image`, shows."""
        if frame == 0:
            return self.first <= 1
        ends_at = max(info.frames_at(self.sampling.fps) for info in self.clips.values())
        return ends_at - self.first - self.size[0] <= 1

    @property
    def unequal(self) -> bool:
        """Whether the clips have other lengths than each other."""
        return len({info.num_frames for info in self.clips.values()}) > 1

    def numbers(self, info: VideoInfo) -> list[int]:
        """The frames of one of the clips, or of a mask like them."""
        return info.numbers_at(self.sampling.fps, self.first, self.size[0])

    @property
    def view(self) -> str:
        """What is done to the clips besides scaling and cropping; empty where their first frames are taken one by one,
        as they are. With the clips' bytes and the size, the row's tensors follow from it."""
        infos = self.clips.values()
        numbers = [self.numbers(info) for info in infos]
        parts = []
        if any(each != list(range(self.size[0])) for each in numbers):
            how = "every frame" if self.like.rate_at(self.sampling.fps) is None else f"{self.rate:g} a second"
            digest = hashlib.sha256(repr(numbers).encode()).hexdigest()[:8]
            parts = [f"{how} from {self.span[0]:g} s ({digest})"]
        return ", ".join(parts + sorted({info.treatment for info in infos} - {""}))


def plan_pair(row: PairRow, size: Size, sampling: Sampling) -> PairPlan:
    """Looks at all clips. Raises InputError, naming row and clip, where they are not alike, not as the row says, too
    slow or too short."""
    return planned(row.id, probe_pair(row), size, sampling)


def planned(name: str, clips: Mapping[str, VideoInfo], size: Size, sampling: Sampling) -> PairPlan:
    """As `plan_pair`, of clips, by side, that were looked at."""
    for side, info in clips.items():
        with named(name, clips, side):
            check_clip(info, size, sampling)
    there = min(info.frames_at(sampling.fps) for info in clips.values())
    with named(name, clips):
        first = sampling.first(name, there, size[0])
    return PairPlan(clips, sampling, size, first)


def bucket_of(name: str, clips: Mapping[str, VideoInfo], sizes: Sequence[Size], sampling: Sampling) -> int:
    """The size that a row's clips are cut to; of one there is no choice. Raises InputError where they fit none."""
    if len(sizes) == 1:
        return 0
    clip = shown_as(clips, sampling.fps)
    bucket = choose_bucket(sizes, clip)
    if bucket is None:
        named = ", ".join(map(size_name, sizes))
        raise InputError(
            f"{titled(name, clips)}: its clips ({clip.path}) have {clip.num_frames} frames of "
            f"{clip.height}x{clip.width} (height x width) and fit none of data.buckets ({named}): those are longer, or "
            "would leave less than half of the picture; add a bucket, or leave the row out"
        )
    return bucket


def views_said(seen: Iterable[tuple[float, str]], what: str = "pair") -> Iterator[str]:
    """A line for each kind of (frames a second, PairPlan.view): what is done to how many pairs (or groups)."""
    kinds = Counter((fps, re.sub(r" from \S+ s \(\w+\)", "", view)) for fps, view in seen)
    for (fps, view), count in kinds.most_common(KINDS_SAID):
        rate = f"of {fps:g} frames a second" if fps else "of pictures"
        yield f"{count} {what}s {rate}: {f'taken at {view}' if view[:1].isdigit() else view or 'as they are'}"
    if len(kinds) > KINDS_SAID:
        yield f"and {len(kinds) - KINDS_SAID} kinds of clips more"


def check_clip(info: VideoInfo, size: Size, sampling: Sampling) -> None:
    """Raises InputError for a clip that is too slow or too short."""
    if size[0] > 1:
        info.check_rate(sampling.fps, upsample=sampling.upsample)
    if info.frames_at(sampling.fps) < size[0]:
        raise too_short(info, sampling.fps, size[0])


def shown_as(clips: Mapping[str, VideoInfo], fps: float | None) -> VideoInfo:
    """A row's clips as one at that rate, as long as the shortest: what a bucket is chosen for."""
    first, *_ = clips.values()
    length = min(info.frames_at(fps) for info in clips.values())
    return replace(first, num_frames=length, fps=float(first.rate_at(fps) or first.fps))


def probe_pair(row: PairRow) -> dict[str, VideoInfo]:
    """What the clips are, by side: of the row's sizes and rate, and of each other's.

    They must differ in what was judged, not in these; of several lengths the common span is taken. Raises InputError
    naming row and clip.
    """
    infos = {}
    for side, path in row.clips.items():
        with named(row.id, row.clips, side):
            infos[side] = probe_video(path)
    for odd in (*unlike(infos), *unsaid(row.extra, infos)):
        raise InputError(f"{titled(row.id, row.clips)}: {odd.what}: {odd.mend}")
    return infos


@dataclass(frozen=True)
class Odd:
    """One thing in which clips are not like each other, or not as their row says."""

    key: str
    what: str
    value: object
    allowed: str
    mend: str


def unlike(clips: Mapping[str, VideoInfo]) -> Iterator[Odd]:
    """The clips of a row must differ in what was judged, not in these."""
    both, one = BOTH[kind_of(clips)]
    for key in ALIKE:
        # A picture has no rate.
        known = [info for info in clips.values() if key != "fps" or info.fps]
        other = next((i for i in known if not _same(key, getattr(known[0], key), getattr(i, key))), None)
        if other is not None:
            first, second = getattr(known[0], key), getattr(other, key)
            what = f"{key} is {_text(first)} in {known[0].path} and {_text(second)} in {other.path}"
            yield Odd(key, what, [first, second], f"one value in {both}", MEND_UNLIKE.format(both, one))


def unsaid(row: Mapping, clips: Mapping[str, VideoInfo]) -> Iterator[Odd]:
    """What a row says of its clips, and one of them is not."""
    for key in SAID:
        said = row.get(key)
        for info in clips.values() if said is not None else ():
            found = [getattr(info, key)]
            if key in (
                "width",
                "height",
            ):  # some count pixels as they are stored: not turned, not made square
                found.append(info.stored[key == "height"])
            if not any(_same(key, each, said) for each in found):
                what = f"its row says {key} {said:g} and {info.path} has {found[0]:g}"
                yield Odd(key, what, said, f"{found[0]:g}", MEND_UNSAID)
                break


def clip_identity(
    row: PairRow, *, pictures: Collection[int] = (), hashes: Mapping[str, str] | None = None
) -> dict:
    """What a row's tensors follow from: SHA-256 of its clips, its `mask` and the `pictures` that the model is given,
    and what it says of the clips. Raises InputError where it says another hash.

    Where a group's pictures are one of its clips', which one is a matter of its labels: it is named too.

    `hashes`: the files' SHA-256 by key, where they are known; by default the files are read.
    """
    files = files_of(row, pictures)
    hashes = {key: sha256_of(file) if hashes is None else hashes[key] for key, file in files.items()}
    for side, clip in row.clips.items():
        found = hashes[side]
        said = row.extra.get(f"sha256_{side}")
        if said is not None and found != said:
            raise InputError(
                f"{titled(row.id, row.clips, side)}: the SHA-256 of {clip} is {found[:12]}..., its row says "
                f"{said[:12]}...: the clip was cut or changed; fetch it again or correct the row"
            )
    starts = {"starts": ends(row.extra)[0]} if takes_frames(pictures, files) and row.kind == "group" else {}
    return hashes | {what: row.extra.get(what) for what in SAID} | starts


def files_of(row: PairRow, pictures: Collection[int]) -> dict[str, Path]:
    """The files that a row's tensors follow from, by key; `pictures`: of which frames the model is given one."""
    others = {key for frame, key in GIVEN.items() if frame not in pictures}
    return {key: file for key, file in row.files.items() if key not in others}


def unread_pictures(plan: PairPlan, files: Collection[str]) -> list[str]:
    """Keys of the pictures among a row's `files` that are not what the taken part of its clips begins or ends with: in
    their place the model is given a frame of the clip."""
    return [key for frame, key in GIVEN.items() if key in files and not plan.reaches(frame)]


def unread_identity(row: PairRow, unread: Collection[str]) -> dict:
    """What a row's tensors follow from beside `clip_identity`, where pictures are unread: which, and of a group whose
    frames stand for them."""
    if not unread:
        return {}
    return {"unread": list(unread)} | ({"starts": ends(row.extra)[0]} if row.kind == "group" else {})


def takes_frames(pictures: Collection[int], files: Collection[str], unread: Collection[str] = ()) -> bool:
    """Whether one of the `pictures` is a frame of a clip, since the row names no file of it, or one that is unread."""
    return any(key not in files or key in unread for key in map(GIVEN.get, pictures))


def read_pair(row: PairRow, plan: PairPlan) -> Iterator[tuple[str, np.ndarray]]:
    """(side, uint8 frames [F, H, W, 3] at the plan's size) of all clips, one after the other. Raises InputError."""
    for side, info in plan.clips.items():
        with named(row.id, plan.clips, side):
            frames = read_frames(info, plan.numbers(info), plan.size[1:])
        yield side, frames


def read_pictures(
    row: PairRow, frames: Mapping[str, np.ndarray], plan: PairPlan, wanted: Collection[int]
) -> dict[int, np.ndarray]:
    """Frame -> uint8 [H, W, 3] that the model is given of it: the row's picture, or that frame of its best clip where
    it names none, or where what is taken begins later, or ends earlier, than the clips."""
    return {frame: _picture(row, frames, plan, frame) for frame in wanted}


def _picture(row: PairRow, frames: Mapping[str, np.ndarray], plan: PairPlan, frame: int) -> np.ndarray:
    key = GIVEN.get(frame)
    file = row.files.get(key) if key is not None else None
    if file is None or not plan.reaches(frame):
        return frames[ends(row.extra)[0]][frame]
    try:
        return read_image(file, plan.size[1:])
    except InputError as error:
        best = "chosen clip" if row.kind == "pair" else "best clip"
        mend = f"or leave `{key}` out to take the {best}'s {'last' if frame else 'first'} frame"
        raise InputError(f"{titled(row.id, row.clips, key)}: {error}, {mend}") from error


def check_mask(path: Path, clip: VideoInfo, kind: str = "pair") -> VideoInfo | None:
    """What a mask is, None of a picture that holds for all frames. Raises InputError unless it can be read and is as
    large as the row's clips (of which `clip` is one), and one that is a clip as long and of their rate."""
    info = None
    if path.is_file() and is_picture(path):
        height, width = read_picture(path).shape[:2]
        found = {"width": width, "height": height}
    else:
        info = probe_video(path)
        found = {what: getattr(info, what) for what in SAID}
    for what, value in found.items():
        wanted = getattr(clip, what)
        if not _same(what, value, wanted):
            raise InputError(
                f"{path}: {what} is {value:g} and the {kind}'s clips have {wanted:g}: a mask has the size of its "
                "clips, and one that is a clip also their length and rate; make it anew or leave the row out"
            )
    return info


def _same(what: str, first: float | str, second: float | str) -> bool:
    if isinstance(first, str):
        return first == second
    return abs(first - second) <= (SAME_RATE * max(first, second) if what == "fps" else 0)


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


@contextlib.contextmanager
def named(name: str, sides: Iterable[str], side: str = "") -> Iterator[None]:
    """Puts row and side before the message of what is refused inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{titled(name, sides, side)}: {error}") from error
