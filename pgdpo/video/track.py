"""A clip's sound track: looked at, and decoded piece by piece.

Times are those of the decoded samples, as a player has them: an edit list, or an encoder's first samples that are to be
thrown away (the priming of AAC, Opus and MP3), are heeded by FFmpeg's decoders. 0 is the first frame that is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av

from pgdpo.messages.errors import InputError, reason_of
from pgdpo.video.sound import SoundInfo


def probe_track(path: Path, picture: Fraction) -> SoundInfo | None:
    """The track of a file whose picture begins at `picture` on the file's clock; None where it has none.

    Raises InputError where it has one that does not decode.
    """
    with opened(path) as (container, stream):
        if stream is None:
            return None
        first, end = None, Fraction(0)
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.pts is not None and not packet.is_discard:
                end = max(end, (packet.pts + (packet.duration or 0)) * Fraction(packet.time_base))
        if first is None:
            raise refused(path, "holds no samples")
        start = time_of(first) - picture
        return SoundInfo(
            stream.codec_context.name,
            first.sample_rate,
            first.layout.nb_channels,
            float(start),
            float(max(end - picture - start, Fraction(0))),
            len(container.streams.audio),
        )


def pieces(path: Path, container, stream) -> Iterator[av.AudioFrame]:
    """The decoded track, all of one rate and layout. Raises InputError where it is damaged or changes inside."""
    first = None
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise refused(path, "is damaged")
        for frame in packet.decode():
            first = first or frame
            if (frame.sample_rate, frame.layout.name) != (first.sample_rate, first.layout.name):
                raise refused(path, "changes its rate or channels inside the clip")
            yield frame


def time_of(frame: av.AudioFrame) -> Fraction:
    return (frame.pts or 0) * Fraction(frame.time_base)


@contextmanager
def opened(path: Path) -> Iterator[tuple]:
    """(container, the track that a player plays, or None); what FFmpeg refuses inside is an InputError."""
    try:
        # Playlists could name other hosts; only the file itself is read.
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}) as container:
            yield container, container.streams.best("audio") if container.streams.audio else None
    except (av.FFmpegError, OSError) as error:
        raise refused(path, f"does not decode: {reason_of(error)}") from error


def refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: its sound track {what}: fetch the clip again, encode its sound again (AAC), or leave the row out"
    )
