"""Where frames come from: a container that FFmpeg opens, or a picture that Pillow does; each frame with its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import av
from av.filter import Graph

from pgdpo.messages.errors import InputError, reason_of
from pgdpo.video.info import MAX_SIDE
from pgdpo.video.picture import PictureSource, is_picture

MAX_PIXELS = {"max_pixels": str(MAX_SIDE**2)}  # for FFmpeg, which allocates frames before we see their size

PROGRESSIVE = (0, 1)  # AVFieldOrder: unknown, progressive
TOP_FIRST = (2, 5)  # by display
FRAMES_SAY = (
    "h264",
    "hevc",
    "mpeg2video",
    "mpeg1video",
    "mpeg4",
    "vc1",
)  # codecs whose frames say if they are of fields
MARGIN = Fraction(1, 2)  # seconds


class Source(Protocol):
    """An open clip."""

    codec: str
    numbered: bool  # frames have no times of their own, as `times` found
    pixel: Fraction  # width of a stored pixel over its height
    interlaced: bool

    def times(self) -> list[Fraction]:
        """Seconds of every frame that is shown, in order; the first need not be 0."""

    def last(self) -> Fraction | None:
        """Seconds for which the last frame is shown, where the file says it for sure; asked after `times`."""

    def rate(self) -> Fraction | None:
        """Frames a second as the file says it."""

    def frames(self, near: Fraction | None = None) -> Iterator[tuple[Fraction | None, av.VideoFrame]]:
        """Every frame in the order of display with its time; those before `near` may be left out. Raises InputError
        where a damaged file would lose one."""


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Raises InputError for a file that is missing, no video, or cut off as far as its header tells."""
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
    """The video stream of a container that a player shows. Each pass over it opens the file anew: not every format can
    seek back."""

    def __init__(self, path: Path) -> None:
        self._path, self._passed, self.numbered = path, False, False
        self._last: Fraction | None = None
        self._of_fields = False  # a frame said so
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
        self._stream = stream = self._container.streams.best("video") or self._container.streams.video[0]
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
        """As the frames that were looked at say it, or the header where they don't."""
        return self._of_fields or self._by_header

    @property
    def _by_header(self) -> bool:
        context = self._stream.codec_context
        return context.field_order not in PROGRESSIVE and context.name not in FRAMES_SAY

    @property
    def pixel(self) -> Fraction:
        """Width of a stored pixel over its height."""
        ratio = self._stream.sample_aspect_ratio
        return Fraction(ratio) if ratio and ratio > 0 else Fraction(1)

    def rate(self) -> Fraction | None:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return Fraction(rate) if rate else None

    def times(self) -> list[Fraction]:
        """By the packets, of which an edit list may hide some, and the decoder those before the first key frame; by
        decoding where these carry no times of their own."""
        packets = [packet for packet in self._packets() if packet.size == 0 or not packet.is_discard]
        shown = [(number, packet) for number, packet in enumerate(packets) if packet.size]
        if "avi" in self._container.format.name.split(
            ","
        ):  # whose packets' times are made up; an empty one is a gap
            self.numbered = True
            return [number / self._certain_rate() for number, _ in shown]
        pts = sorted(packet.pts for _, packet in shown if packet.pts is not None)
        unit = Fraction(self._stream.time_base)
        if len(set(pts)) == len(shown):
            last = max(packets, key=lambda packet: packet.pts or 0)
            self._last = last.duration * unit if self.codec == "gif" and last.duration else None
            first = next((time for time, _ in self.frames()), None)
            return [time * unit for time in pts if first is None or time * unit >= first]
        times = [time for time, _ in self.frames()]
        if None in times or any(after <= before for before, after in pairwise(times)):
            self.numbered = True
            times = [number / self._certain_rate() for number in range(len(times))]
        return times

    def _certain_rate(self) -> Fraction:
        rate = self.rate()
        if rate is None:
            raise InputError(f"{self._path}: its frames have no times, and it says no rate: re-encode it")
        return rate

    def last(self) -> Fraction | None:
        return self._last

    def _packets(self) -> list[av.Packet]:
        self._begin()
        try:
            packets = list(self._container.demux(self._stream))[:-1]  # the last one flushes the decoder
        except av.FFmpegError as error:
            raise _damaged(self._path, f"its frames cannot be counted: {reason_of(error)}") from error
        if not any(packet.size for packet in packets):
            raise empty(self._path)
        return packets

    def frames(self, near: Fraction | None = None) -> Iterator[tuple[Fraction | None, av.VideoFrame]]:
        """Where the stream is interlaced, through FFmpeg's yadif, one frame out of two fields."""
        deinterlace = _Deinterlacer(self._stream, always=True) if self._by_header else None
        for frame in self._decoded(near):
            if deinterlace is None and frame.interlaced_frame:
                deinterlace, self._of_fields = _Deinterlacer(self._stream), True
            for shown in [frame] if deinterlace is None else deinterlace.push(frame):
                yield _time(shown), shown
        for shown in deinterlace.push(None) if deinterlace is not None else ():
            yield _time(shown), shown

    def _decoded(self, near: Fraction | None) -> Iterator[av.VideoFrame]:
        self._begin()
        decoded, packets = 0, 0
        sought = near is not None and self._seek(near)
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
        if packets < self._said and not sought:
            raise _damaged(self._path, f"its header says {self._said} frames and it holds {packets}")
        if not decoded:
            raise empty(self._path)

    def _seek(self, near: Fraction) -> bool:
        """To a key frame well before `near`, if there is one: fields and references reach back."""
        try:
            self._container.seek(int((near - MARGIN) / Fraction(self._stream.time_base)), stream=self._stream)
        except av.FFmpegError:
            self.close()
            self._open()
            return False
        return True

    def _begin(self) -> None:
        if self._passed:
            self.close()
            self._open()
        self._passed = True


class _Deinterlacer:
    """FFmpeg's yadif over a stream's frames; those that are not interlaced pass as they are."""

    def __init__(self, stream, *, always: bool = False) -> None:
        """`always`: frames don't say that they are interlaced, nor which field is first; the header does."""
        parity = "tff" if stream.codec_context.field_order in TOP_FIRST else "bff"
        options = f"deint=all:parity={parity}" if always else "deint=interlaced"
        self._graph = Graph()
        self._source = self._graph.add_buffer(template=stream)
        yadif = self._graph.add("yadif", f"mode=send_frame:{options}")
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
