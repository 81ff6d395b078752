"""Where frames come from: a container that FFmpeg opens, or a picture that Pillow does; each frame with its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
from av.filter import Graph

from pgdpo.errors import InputError

MAX_SIDE = 8192  # pixels; a header that says more is damaged or hostile, and its frames would fill the memory
MAX_PIXELS = {"max_pixels": str(MAX_SIDE**2)}  # for FFmpeg, which allocates frames before we see their size

PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive


class Source(Protocol):
    """An open clip."""

    codec: str
    pixel: Fraction  # width of a stored pixel over its height
    interlaced: bool

    def times(self) -> list[Fraction]:
        """Seconds of every frame that is shown, in order; the first need not be 0."""

    def rate(self) -> Fraction | None:
        """Frames a second as the file says it."""

    def frames(self) -> Iterator[tuple[Fraction | None, av.VideoFrame]]:
        """Every frame in the order of display with its time. Raises InputError where a damaged file would lose one."""


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Raises InputError for a file that is missing, no video, or cut off as far as its header tells."""
    from pgdpo.data.video.picture import PictureSource, is_picture

    if not path.is_file():
        raise InputError(f"{path}: no such file: correct the path or leave the row out")
    if is_picture(path):
        yield PictureSource(path)
        return
    source = ContainerSource(path)
    try:
        yield source
    finally:
        source.close()


class ContainerSource:
    """The first video stream of a container. Each pass over it opens the file anew: not every format can seek."""

    def __init__(self, path: Path) -> None:
        self._path, self._passed = path, False
        self._open()

    def _open(self) -> None:
        path = self._path
        try:
            # Playlists could name other hosts; only the file itself is read.
            self._container = av.open(f"file:{path}", options={"protocol_whitelist": "file", **MAX_PIXELS})
        except (av.FFmpegError, OSError) as error:
            raise InputError(
                f"{path}: not a video, or cut off before its index ({reason_of(error)}): "
                "check that it plays, fetch it again or re-encode it"
            ) from error
        if not self._container.streams.video:
            self.close()
            raise InputError(f"{path}: holds no video stream: name a file with pictures or leave the row out")
        self._stream = stream = self._container.streams.video[0]
        self.codec = stream.codec_context.name
        stream.thread_type = "AUTO"
        check_side(path, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = MAX_PIXELS  # those above hold while FFmpeg probes the file, not after
        needed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if needed > path.stat().st_size:
            raise _damaged(path, f"its index reaches to byte {needed} and the file has {path.stat().st_size}")

        # An edit list may hide frames on purpose, which MP4's index then is without.
        in_index = len(stream.index_entries) if "mp4" in self._container.format.name else 0
        self._said = min(stream.frames, in_index or stream.frames)

    def close(self) -> None:
        self._container.close()

    @property
    def interlaced(self) -> bool:
        """As the header says it; frames say it too."""
        return self._stream.codec_context.field_order not in PROGRESSIVE

    @property
    def pixel(self) -> Fraction:
        """Width of a stored pixel over its height."""
        ratio = self._stream.sample_aspect_ratio
        return Fraction(ratio) if ratio and ratio > 0 else Fraction(1)

    def rate(self) -> Fraction | None:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return Fraction(rate) if rate else None

    def times(self) -> list[Fraction]:
        """By the packets, of which an edit list may hide some; by decoding where these carry no times of their own."""
        packets = self._packets()
        pts = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
        unit = Fraction(self._stream.time_base)
        if pts and len(set(pts)) == len(pts) and all(packet.pts is not None for packet in packets):
            return [time * unit for time in pts]
        rate = self.rate()
        times = [time for time, _ in self.frames()]
        if None in times or len(set(times)) < len(times):
            if rate is None:
                raise InputError(f"{self._path}: its frames have no times, and it says no rate: re-encode it")
            times = [number / rate for number in range(len(times))]
        return times

    def _packets(self) -> list[av.Packet]:
        self._begin()
        try:
            packets = [packet for packet in self._container.demux(self._stream) if packet.size]
        except av.FFmpegError as error:
            raise _damaged(self._path, f"its frames cannot be counted: {reason_of(error)}") from error
        if not packets:
            raise empty(self._path)
        return packets

    def frames(self) -> Iterator[tuple[Fraction | None, av.VideoFrame]]:
        """Where the stream is interlaced, through FFmpeg's yadif, one frame out of two fields."""
        deinterlace = None
        for frame in self._decoded():
            if deinterlace is None and frame.interlaced_frame:
                deinterlace = _Deinterlacer(self._stream)
            for shown in [frame] if deinterlace is None else deinterlace.push(frame):
                yield _time(shown), shown
        for shown in deinterlace.push(None) if deinterlace is not None else ():
            yield _time(shown), shown

    def _decoded(self) -> Iterator[av.VideoFrame]:
        self._begin()
        decoded, packets = 0, 0
        try:
            for packet in self._container.demux(self._stream):
                packets += packet.size > 0
                if packet.is_corrupt:
                    raise _damaged(self._path, f"frame {packets} is damaged")
                for frame in packet.decode():
                    check_side(self._path, frame.width, frame.height)
                    decoded += 1
                    yield frame
        except av.FFmpegError as error:
            raise _damaged(self._path, f"frame {decoded + 1} does not decode: {reason_of(error)}") from error
        if packets < self._said:
            raise _damaged(self._path, f"its header says {self._said} frames and it holds {packets}")
        if not decoded:
            raise empty(self._path)

    def _begin(self) -> None:
        if self._passed:
            self.close()
            self._open()
        self._passed = True


class _Deinterlacer:
    """FFmpeg's yadif over a stream's frames; those that are not interlaced pass as they are."""

    def __init__(self, stream) -> None:
        self._graph = Graph()
        self._source = self._graph.add_buffer(template=stream)
        yadif = self._graph.add("yadif", "mode=send_frame:deint=interlaced")
        self._sink = self._graph.add("buffersink")
        self._source.link_to(yadif)
        yadif.link_to(self._sink)
        self._graph.configure()

    def push(self, frame: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """None: there is no other."""
        self._source.push(frame)
        while True:
            try:
                yield self._sink.pull()
            except (av.BlockingIOError, av.EOFError):
                return


def _time(frame: av.VideoFrame) -> Fraction | None:
    return None if frame.pts is None else frame.pts * Fraction(frame.time_base)


def check_side(path: Path, width: int, height: int) -> None:
    """Raises InputError for frames without a size, or of one that no memory holds."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        said = f"frames of {width}x{height} pixels (width x height)"
        if not (width and height):  # FFmpeg forgets a size that it refuses
            said = "frames of an unknown or far too large size"
        raise InputError(
            f"{path}: {said}; 1 to {MAX_SIDE} pixels a side are read: check the file or re-encode it smaller"
        )


def empty(path: Path) -> InputError:
    return InputError(f"{path}: holds no frames: leave the row out")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"{path}: truncated or damaged ({what}): fetch it again or leave the row out")


def reason_of(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
