"""Looking at clips and reading their frames. One look serves every command, so that none sees another clip."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

from pgdpo.messages.errors import InputError, reason_of
from pgdpo.video.info import Light, VideoInfo, exact
from pgdpo.video.shape import UPRIGHT, Shaper, orientation_of
from pgdpo.video.source import Source, check_side, empty, open_source

MAX_DECODED = 8 << 30  # bytes of a clip's frames in memory: 260 of 4K
LIGHTS: dict[int, Light] = {ColorTrc.SMPTE2084: "pq", ColorTrc.ARIB_STD_B67: "hlg"}
UNREAD = {ColorTrc.LINEAR: "linear", ColorTrc.LOG: "logarithmic", ColorTrc.LOG_SQRT: "logarithmic"}
UNREAD |= {ColorTrc.SMPTE428: "SMPTE 428 (cinema)"}
WIDE = {ColorPrimaries.BT2020: "bt2020", ColorPrimaries.SMPTE432: "p3", ColorPrimaries.SMPTE431: "p3"}
MATRICES = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "SMPTE 2085", 12: "of derived luminance"}
MATRICES |= {
    13: "of derived luminance",
    14: "ICtCp",
    15: "IPT-PQ-C2 (Dolby Vision)",
    16: "YCgCo",
    17: "YCgCo",
}
FAR = 2  # seconds after a clip's start, from where on a key frame is sought
STEADY = Fraction(3, 1000)  # seconds by which frames may miss their rate: some containers count milliseconds


def probe_video(path: str | Path) -> VideoInfo:
    """Size, rate, length and light of the first video stream, from its packets and its first frame.

    Raises InputError if the file is missing, truncated, no video, or of a kind of picture that is not read.
    """
    path = Path(path)
    if not path.is_file():
        return _probed(path, 0, 0)  # which says it
    found = path.stat()
    return _probed(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(64)  # a file is asked for once for each span of it
def _probed(path: Path, size: int, time: int) -> VideoInfo:
    with open_source(path) as source:
        return _look(source, path)


def verify_video(path: str | Path) -> VideoInfo:
    """As `probe_video`, after every frame was decoded.

    Raises InputError if the file is also damaged anywhere, or changes its size, light or rotation inside.
    """
    path = Path(path)
    with open_source(path) as source:
        info = _look(source, path)
        for number, frame in _numbered(info, source, range(info.num_frames)):
            if number == 0:
                _shown(Shaper(info, None), frame, path)
        return info


def read_frames(info: VideoInfo, numbers: Sequence[int], size: tuple[int, int] | None = None) -> np.ndarray:
    """The frames of these ascending numbers, some perhaps twice, of a clip that `probe_video` looked at.

    A file that lost its end is known by its index or declared frame count (MP4, MOV, AVI). Matroska, MPEG-TS
    and GIF declare neither: there a lost end shows only as a shorter clip.

    Args:
        size: (height, width) in pixels; the frame is scaled with its aspect ratio kept until it covers `size`
            (area filter when it shrinks, bicubic when it grows) and cropped about its centre. None: as displayed.

    Returns:
        uint8 array of shape [len(numbers), height, width, 3], RGB.

    Raises:
        InputError: the file is damaged before the last of them, changes inside, or they take more than 8 GiB.
    """
    height, width = size or (info.height, info.width)
    if 3 * height * width * len(numbers) > MAX_DECODED:
        raise InputError(
            f"{info.path}: {len(numbers)} frames of {width}x{height} pixels take over {MAX_DECODED:,} bytes once "
            "decoded: cut the clip"
        )
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    if not numbers:
        return frames
    shape, places = Shaper(info, size), Counter(numbers)
    with open_source(info.path) as source:
        first = info.times[numbers[0]]
        near = info.start + first if info.start is not None and first > FAR else None
        for attempt in dict.fromkeys((near, None)):
            try:
                done = 0
                for number, frame in _numbered(info, source, sorted(places), near=attempt):
                    frames[done : done + places[number]] = _shown(shape, frame, info.path)
                    done += places[number]
                return frames
            except InputError:
                if attempt is None:  # else what it needs may lie before the key frame that was sought
                    raise
    raise AssertionError


def _shown(shape: Shaper, frame: av.VideoFrame, path: Path) -> np.ndarray:
    try:
        return shape(frame)
    except av.FFmpegError as error:
        raise InputError(
            f"{path}: its frames cannot be shown in RGB ({reason_of(error)}): re-encode it"
        ) from error


def _numbered(
    info: VideoInfo, source: Source, wanted: Sequence[int], near: Fraction | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of these ascending numbers, known by their times. Raises InputError where one does not come."""
    left = iter(wanted)
    number = next(left, None)
    for count, (time, frame) in enumerate(source.frames(near)):
        if number is None:
            return
        due = number if info.start is None else info.start + info.times[number]
        time = count if info.start is None else time
        if time is None or time > due:
            raise _lost(info, number)
        if time == due:
            _check_alike(info, frame, info.path)
            yield number, frame
            number = next(left, None)
            if number is None and len(wanted) < info.num_frames:
                return
    if number is not None:
        raise _lost(info, number)


def _lost(info: VideoInfo, number: int) -> InputError:
    return InputError(
        f"{info.path}: truncated or damaged (frame {number + 1} of {info.num_frames} does not decode): fetch it again "
        "or leave the row out"
    )


def read_video(
    path: str | Path,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode a clip from its start to RGB frames, as `read_frames` gives them.

    Args:
        path: any container and codec that FFmpeg reads, or a picture.
        num_frames: take the first `num_frames` frames (after `fps`); all frames when None.
        fps: frames a second to sample the clip at: frame i is the one nearest to i / fps seconds. At most the clip's
            own rate; the clip's own frames when None.
        size: as `read_frames` takes it.

    Raises:
        InputError: as `probe_video` and `read_frames` do; or it holds fewer frames than `num_frames`, or has a lower
            rate than `fps`.
    """
    info = probe_video(path)
    info.check_rate(fps)
    there = info.frames_at(fps)
    if num_frames is not None and there < num_frames:
        raise too_short(info, fps, num_frames)
    return read_frames(info, info.numbers_at(fps, 0, there if num_frames is None else num_frames), size)


def too_short(info: VideoInfo, fps: float | None, wanted: int) -> InputError:
    """The error of a clip with fewer frames than are wanted."""
    there, rate = info.frames_at(fps), "" if fps is None else f" at {fps:g} frames a second"
    return InputError(
        f"{info.path}: the clip holds {there} frames{rate} and {wanted} were asked for: "
        f"ask for at most {there} frames or leave the clip out (clips are never padded)"
    )


def _look(source: Source, path: Path) -> VideoInfo:
    times = source.times()
    frame = next((frame for _, frame in source.frames()), None)
    if frame is None or not times:
        raise empty(path)
    light, wide = _light(frame, path)
    orientation = orientation_of(frame)
    if orientation is None:
        raise InputError(f"{path}: is turned by no multiple of 90 degrees: re-encode it upright")
    width, height = round(frame.width * source.pixel), frame.height
    check_side(path, width, height)
    if orientation[0]:
        width, height = height, width
    fps, variable = _rate(times, source.rate(), path)
    last = source.last() if len(times) > 1 else None
    if last is not None and abs(last - 1 / exact(fps)) <= STEADY:
        last = None
    return VideoInfo(
        width,
        height,
        fps,
        len(times),
        source.codec,
        variable=variable or last is not None,
        interlaced=source.interlaced,
        light=light,
        wide=wide,
        stored=(frame.width, frame.height),
        pixel=source.pixel,
        orientation=orientation,
        last=last,
        start=None if source.numbered else times[0],
        times=tuple(time - times[0] for time in times),
        path=path,
    )


def _rate(times: Sequence[Fraction], said: Fraction | None, path: Path) -> tuple[float, bool]:
    """(frames a second, whether they are not equally long): the rate that the file says where all frames keep it, else
    that of the commonest step between two frames."""
    if len(times) == 1:
        return float(said or 0), False
    steps = [after - before for before, after in pairwise(times)]
    for rate in (said, Fraction(len(steps)) / (times[-1] - times[0])):
        if rate and all(abs(time - times[0] - number / rate) <= STEADY for number, time in enumerate(times)):
            return float(rate), False
    common = Counter(round(step, 3) for step in steps).most_common(1)[0][0]
    alike = [step for step in steps if abs(step - common) <= STEADY]
    if not alike or min(steps) <= 0:
        raise InputError(f"{path}: its frames' times do not go forward: re-encode it")
    return float(len(alike) / sum(alike)), True


def _light(frame: av.VideoFrame, path: Path) -> tuple[Light, str]:
    unread = UNREAD.get(frame.color_trc) or MATRICES.get(frame.colorspace)
    if unread:
        raise InputError(
            f"{path}: its colours are {unread}, which is not read: convert the clip to BT.709, PQ or HLG"
        )
    light = LIGHTS.get(frame.color_trc, "sdr")
    # HDR without primaries is BT.2020's, as BT.2100 has it.
    wide = WIDE.get(frame.color_primaries, "bt2020" if light != "sdr" and frame.color_primaries == 2 else "")
    return light, wide


def _check_alike(info: VideoInfo, frame: av.VideoFrame, path: Path) -> None:
    """Raises InputError for a frame of another size or light than the clip's first."""
    if (frame.width, frame.height) != info.stored:
        raise InputError(
            f"{path}: the frame size changes inside the clip, from {info.stored} to {(frame.width, frame.height)} "
            "(width, height): re-encode it at one size"
        )
    if _light(frame, path) != (info.light, info.wide):
        raise InputError(f"{path}: its colours change inside the clip (HDR or primaries): re-encode it")
    if orientation_of(frame) not in (UPRIGHT, info.orientation):
        raise InputError(f"{path}: the way that it is turned changes inside the clip: re-encode it")
