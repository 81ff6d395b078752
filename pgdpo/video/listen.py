"""The sound of a part of a clip, in step with its picture, as a model takes it."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from pgdpo.messages.errors import InputError
from pgdpo.video.info import VideoInfo
from pgdpo.video.sound import LAYOUTS, Sound, SoundFormat
from pgdpo.video.track import opened, pieces, refused, time_of

SHORT = 0.1  # seconds by which a track may end before the picture, and is continued with silence
STEADY = (
    0.03  # seconds by which a piece's time may miss where the one before it ended: milliseconds are rounded
)
AROUND = 0.1  # seconds beside what is taken that the resampler sees
PLACES = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}  # of channels of which the file says no place


def read_sound(info: VideoInfo, first_second: float, seconds: float, fmt: SoundFormat) -> Sound:
    """The sound of a part of a clip that `probe_video` looked at, silent where its track has not begun yet.

    Args:
        info: the clip.
        first_second: where it begins, after the first frame that is shown.
        seconds: how long it is: `round(seconds * fmt.rate)` samples.
        fmt: what it is converted to. One channel is copied to two; of more, two are mixed.

    Raises:
        InputError: the clip has no track, a damaged one, one that changes inside, or one that ends more than 0.1 s (or
            a frame, if that is longer) before the part does; up to that, silence follows it.
    """
    path, picture = info.path, info.start or Fraction(0)
    with opened(path) as (container, stream):
        if stream is None:
            raise InputError(f"{path}: has no sound track: give the clip one or leave the row out")
        frames = pieces(path, container, stream)
        frame = next(frames, None)
        if frame is None:
            raise refused(path, "holds no samples")
        rate, layout = frame.sample_rate, _layout(frame, path)
        begin = int((first_second - AROUND) * rate)  # in the file's samples, 0 at the picture's first frame
        count = round((first_second + seconds + AROUND) * rate) - begin
        taken = np.zeros((frame.layout.nb_channels, count), np.float32)
        unpacked, reached = av.AudioResampler("fltp", frame.layout, rate), None
        while frame is not None and (reached is None or reached - begin < count):
            at = reached or 0 if frame.pts is None else round((time_of(frame) - picture) * rate)
            if reached is None or abs(at - reached) > STEADY * rate:
                reached = at  # the first piece, or one after a gap
            for piece in unpacked.resample(frame):
                samples = piece.to_ndarray()
                _put(taken, samples, reached - begin)
                reached += samples.shape[1]
            frame = next(frames, None)
    _check_end(info, reached / rate, first_second + seconds)
    resampled = _resampled(taken, layout, rate, fmt)
    skipped = round((first_second - begin / rate) * fmt.rate)
    return Sound(resampled[:, skipped : skipped + round(seconds * fmt.rate)], fmt.rate)


def missing(info: VideoInfo, wanted: float) -> float:
    """Seconds of silence that follow a track which is to reach to `wanted` seconds. Raises InputError for too many."""
    _check_end(info, info.sound.end, wanted)
    return max(wanted - info.sound.end, 0.0)


def _check_end(info: VideoInfo, ends: float, wanted: float) -> None:
    if ends < wanted - max(SHORT, 1 / info.fps):
        raise InputError(
            f"{info.path}: its sound ends after {ends:.3g} s and the picture that is taken of it after {wanted:.3g} s: "
            "give it a track as long as the picture, take fewer frames (data.num_frames) or leave the row out (sound "
            "is never looped)"
        )


def loudest(info: VideoInfo) -> float | None:
    """The largest absolute sample of a clip's track, which is decoded to its end; None of a clip without one.

    Raises InputError where it is damaged or changes inside.
    """
    if info.sound is None:
        return None
    most = 0.0
    with opened(info.path) as (container, stream):
        unpacked = None
        for frame in pieces(info.path, container, stream):
            unpacked = unpacked or av.AudioResampler("fltp", frame.layout, frame.sample_rate)
            for piece in unpacked.resample(frame):
                most = max(most, float(np.abs(piece.to_ndarray()).max(initial=0)))
    return most


def track_of(info: VideoInfo, seconds: float, fmt: SoundFormat) -> Sound | None:
    """The sound of a clip's first `seconds`, or of as many of them as its track has, for a copy of the clip; None of
    one without. Raises InputError where it is damaged or changes inside."""
    if info.sound is None or info.sound.end <= 0:
        return None
    return read_sound(info, 0.0, min(seconds, info.sound.end), fmt)


def _put(taken: np.ndarray, samples: np.ndarray, at: int) -> None:
    """Samples into their place, as far as it lies in what is taken."""
    first, last = max(at, 0), min(at + samples.shape[1], taken.shape[1])
    if first < last:
        taken[:, first:last] = samples[:, first - at : last - at]


def _resampled(samples: np.ndarray, layout: str, rate: int, fmt: SoundFormat) -> np.ndarray:
    """`[channels, n]` -> `[fmt.channels, n * fmt.rate / rate]` through FFmpeg's resampler, whose delay it takes off.
    One channel is copied to two; more are mixed down, each in a share with which nothing can clip."""
    copied = layout == "mono"
    wanted = "mono" if copied else LAYOUTS[fmt.channels]
    graph = Graph()
    unit = Fraction(1, rate)
    source = graph.add_abuffer(sample_rate=rate, format="fltp", layout=layout, time_base=unit)
    change = graph.add("aresample", f"osr={fmt.rate}:ochl={wanted}:osf=fltp:rematrix_maxval=1")
    sink = graph.add("abuffersink")
    source.link_to(change)
    change.link_to(sink)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, unit
    source.push(frame)
    source.push(None)
    found = np.concatenate([piece.to_ndarray() for piece in _pulled(sink)], axis=1)
    return found.repeat(fmt.channels, axis=0) if copied else found


def _pulled(sink) -> Iterator[av.AudioFrame]:
    while True:
        try:
            yield sink.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _layout(frame: av.AudioFrame, path: Path) -> str:
    """FFmpeg's name of where the channels stand; of channels without a place what their number mostly means."""
    count = frame.layout.nb_channels
    if not frame.layout.name.endswith("channels"):
        return frame.layout.name
    if count not in PLACES:
        raise refused(path, f"has {count} channels and says not where they stand")
    return PLACES[count]
