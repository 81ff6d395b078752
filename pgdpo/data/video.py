"""Clips in and out of files through PyAV: the one place where the trainer touches a video codec.

A clip that cannot be trained on as asked is refused here, with its name and what to do: it is never
padded, looped or decoded in part.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from pgdpo.errors import InputError

MAX_SIDE = 8192  # pixels; a header that says more is damaged or hostile, and its frames would fill the memory
MAX_DECODED = 8 << 30  # bytes of a clip's frames in memory: 260 of 4K
MAX_PIXELS = {"max_pixels": str(MAX_SIDE**2)}  # for FFmpeg, which allocates frames before we see their size
BT709 = 1  # the value of colour primaries, transfer and matrix in ITU-T H.273
MPEG_RANGE = 1


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: `width` and `height` in pixels as displayed, `fps` in frames a second."""

    width: int
    height: int
    fps: float
    num_frames: int
    codec: str


def probe_video(path: str | Path) -> VideoInfo:
    """Size, rate, length and codec of the first video stream, from its header and its first frame.

    Raises:
        InputError: the file is missing, truncated or no video.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        num_frames = _count_frames(container, stream, path)
        first = next(_decode(container, stream, path))
        width, height = first.width, first.height
        if first.rotation % 180:
            width, height = height, width
        return VideoInfo(width, height, float(_rate(stream, path)), num_frames, stream.codec_context.name)


def verify_video(path: str | Path) -> VideoInfo:
    """As `probe_video`, after every frame was decoded: `num_frames` counts what is really there.

    Raises:
        InputError: the file is missing, no video, or damaged anywhere.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        num_frames, sizes = 0, set()
        for frame in _decode(container, stream, path):
            num_frames += 1
            sizes.add(
                (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
            )
        if len(sizes) > 1:
            raise InputError(
                f"{path}: the frame size changes inside the clip: {sorted(sizes)} (width, height): re-encode it at one "
                "size"
            )
        [(width, height)] = sizes
        return VideoInfo(width, height, float(_rate(stream, path)), num_frames, stream.codec_context.name)


def read_video(
    path: str | Path,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decode a clip to RGB frames.

    A file that lost its end is known by its index or declared frame count (MP4, MOV, AVI). Matroska, MPEG-TS
    and GIF declare neither: there a lost end shows only as a clip shorter than `num_frames`.

    Args:
        path: any container and codec that FFmpeg reads.
        num_frames: take the first `num_frames` frames (after `fps`); all frames when None.
        fps: frames a second to sample the clip at: frame i is the one on screen at i / fps seconds.
            At most the clip's own rate; the clip's own frames when None.
        size: (height, width) in pixels; the frame is scaled with its aspect ratio kept until it covers
            `size` (area filter when it shrinks, bicubic when it grows) and cropped about its centre.

    Returns:
        uint8 array of shape [frames, height, width, 3].

    Raises:
        InputError: the file is missing, no video, truncated, larger than 8192 pixels a side or than 8 GiB once
            decoded, holds fewer frames than `num_frames`, or has a lower rate than `fps`.
    """
    path = Path(path)
    with _open(path) as (container, stream):
        decoded = _decode(container, stream, path)
        if fps is not None:
            decoded = _at_rate(decoded, stream, fps, path)
        frames: list[np.ndarray] = []
        scaler = VideoReformatter()  # one for the clip: it keeps its tables from frame to frame
        for frame in decoded:
            frames.append(_to_rgb(scaler, frame, size))
            if frames[-1].shape != frames[0].shape:
                raise InputError(
                    f"{path}: the frame size changes inside the clip, from {frames[0].shape[:2]} to "
                    f"{frames[-1].shape[:2]} (height, width): re-encode it at one size"
                )
            if len(frames) == num_frames:
                break
            if len(frames) * frames[0].nbytes > MAX_DECODED:
                raise InputError(
                    f"{path}: more than {len(frames) - 1} frames of {frames[0].shape[1]}x{frames[0].shape[0]} pixels, "
                    f"over {MAX_DECODED:,} bytes once decoded: cut the clip"
                )
    if num_frames is not None and len(frames) < num_frames:
        rate = "" if fps is None else f" at {fps:g} frames a second"
        raise InputError(
            f"{path}: the clip holds {len(frames)} frames{rate} and {num_frames} were asked for: "
            f"ask for at most {len(frames)} frames or leave the clip out (clips are never padded)"
        )
    return np.stack(frames)


def fit_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture, uint8 RGB [height, width, 3], scaled to cover `size` and cropped to it as frames of a clip are."""
    return _to_rgb(VideoReformatter(), av.VideoFrame.from_ndarray(picture, format="rgb24"), size)


def write_video(path: str | Path, frames: np.ndarray, fps: float, *, crf: int = 12, scale: int = 1) -> None:
    """Encode a clip as H.264 (yuv420p, BT.709) in an MP4 that browsers play; equal input gives equal bytes.

    The file appears under its name only when it is complete.

    Args:
        path: the file to write; its folder must exist.
        frames: uint8 array [frames, height, width, 3], RGB.
        fps: frames a second.
        crf: x264's constant rate factor: 0 is lossless, 51 the worst.
        scale: whole factor by which every pixel is repeated along both sides.

    Raises:
        ValueError: frames of another dtype or shape, or an odd side after scaling (4:2:0 halves both sides).
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(
            f"frames: uint8 [frames, height, width, 3] wanted, {frames.dtype} {frames.shape} given"
        )
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: yuv420p needs even sides, {height}x{width} (height x width) given")
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            # x264's decisions depend on the number of threads, and on the processor unless it is told not to
            # (with AVX-512, one encode in some hundred differed from its twins).
            options = {"crf": str(crf), "threads": "1", "x264-params": "cpu-independent=1"}
            stream = container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1001), options=options
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = MPEG_RANGE
            for array in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
                frame = frame.reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=Interpolation.AREA
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _open(path: Path) -> Iterator[tuple]:
    """The container and its first video stream, after everything a header can tell has been checked."""
    if not path.is_file():
        raise InputError(f"{path}: no such file: correct the path or leave the row out")
    try:
        # Playlists could name other hosts; only the file itself is read.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file", **MAX_PIXELS})
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path}: not a video, or cut off before its index ({_reason(error)}): "
            "check that it plays, fetch it again or re-encode it"
        ) from error
    with container:
        if not container.streams.video:
            raise InputError(f"{path}: holds no video stream: name a file with pictures or leave the row out")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        _check_side(path, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = MAX_PIXELS  # those above hold while FFmpeg probes the file, not after
        entries = stream.index_entries
        needed = max((entry.pos + entry.size for entry in entries), default=0)
        if needed > path.stat().st_size:
            raise _truncated(
                path, f"its index reaches to byte {needed} and the file has {path.stat().st_size}"
            )
        yield container, stream


def _count_frames(container, stream, path: Path) -> int:
    """Frames by the header, by the packets where it says none; the container stands at its start again."""
    try:
        num_frames = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
        if num_frames:
            container.seek(0)
    except av.FFmpegError as error:
        raise _truncated(path, f"its frames cannot be counted: {_reason(error)}") from error
    if not num_frames:
        raise _empty(path)
    return num_frames


def _decode(container, stream, path: Path) -> Iterator[av.VideoFrame]:
    """All frames in display order; an error instead of the frames that a damaged file would lose."""
    decoded, packets = 0, 0
    try:
        for packet in container.demux(stream):
            packets += packet.size > 0
            if packet.is_corrupt:
                raise _truncated(path, f"frame {packets} is damaged")
            for frame in packet.decode():
                _check_side(path, frame.width, frame.height)
                decoded += 1
                yield frame
    except av.FFmpegError as error:
        raise _truncated(path, f"frame {decoded + 1} does not decode: {_reason(error)}") from error
    # An edit list may hide frames on purpose: packets are what the header's count is held against.
    if packets < stream.frames:
        raise _truncated(path, f"its header says {stream.frames} frames and it holds {packets}")
    if not decoded:
        raise _empty(path)


def _at_rate(frames: Iterator[av.VideoFrame], stream, fps: float, path: Path) -> Iterator[av.VideoFrame]:
    """The frame on screen at i / fps seconds after the first, for i = 0, 1, ... to the clip's end."""
    own = _rate(stream, path)
    if fps > float(own) * 1.001:  # 24 is asked of 24000/1001 all the time
        raise InputError(
            f"{path}: has {float(own):g} frames a second and {fps:g} were asked for, "
            f"which would repeat frames: ask for at most {float(own):g}"
        )
    step = 1 / min(Fraction(fps).limit_denominator(1001), own)
    due, start, shown = Fraction(0), None, None
    for frame in frames:
        if frame.pts is None:
            raise InputError(f"{path}: has frames without a time stamp: re-encode it")
        start = frame.pts if start is None else start
        now = (frame.pts - start) * Fraction(frame.time_base.numerator, frame.time_base.denominator)
        while shown is not None and due < now:
            yield shown
            due += step
        shown = frame
    if shown is not None and due < now + 1 / own:
        yield shown


def _rate(stream, path: Path) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise InputError(f"{path}: says no frame rate: re-encode it with one")
    return Fraction(rate.numerator, rate.denominator)


def _to_rgb(scaler: VideoReformatter, frame: av.VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    """One decoded frame as [height, width, 3], upright, scaled to cover `size` and cropped to it."""
    width, height, turns = frame.width, frame.height, frame.rotation // 90 % 4
    interpolation = Interpolation.BICUBIC
    if size is not None:
        target_height, target_width = size if turns % 2 == 0 else size[::-1]
        ratio = max(Fraction(target_height, height), Fraction(target_width, width))
        width, height = max(round(width * ratio), target_width), max(round(height * ratio), target_height)
        if ratio < 1:
            interpolation = Interpolation.AREA
    rgb = scaler.reformat(frame, width, height, "rgb24", interpolation=interpolation).to_ndarray()
    rgb = np.rot90(rgb, turns)
    if size is not None:
        top, left = (rgb.shape[0] - size[0]) // 2, (rgb.shape[1] - size[1]) // 2
        rgb = rgb[top : top + size[0], left : left + size[1]]
    return np.ascontiguousarray(rgb)


def _check_side(path: Path, width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        said = f"frames of {width}x{height} pixels (width x height)"
        if not (width and height):  # FFmpeg forgets a size that it refuses
            said = "frames of an unknown or far too large size"
        raise InputError(
            f"{path}: {said}; 1 to {MAX_SIDE} pixels a side are read: check the file or re-encode it smaller"
        )


def _empty(path: Path) -> InputError:
    return InputError(f"{path}: holds no frames: leave the row out")


def _truncated(path: Path, what: str) -> InputError:
    return InputError(f"{path}: truncated or damaged ({what}): fetch it again or leave the row out")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
