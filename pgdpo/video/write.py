"""Clips into files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from pgdpo.video.sound import LAYOUTS, Sound

BT709 = 1  # the value of colour primaries, transfer and matrix in ITU-T H.273
MPEG_RANGE = 1
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
BIT_RATE = 128_000  # a channel: AAC's own losses stay below what is judged


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    *,
    crf: int = 12,
    scale: int = 1,
    short: int | None = None,
    sound: Sound | None = None,
    bit_rate: int = BIT_RATE,
) -> None:
    """Encode a clip as H.264 (yuv420p, BT.709) in an MP4 that browsers play; equal input gives equal bytes.

    The file appears under its name only when it is complete.

    Args:
        path: the file to write; its folder must exist.
        frames: uint8 array [frames, height, width, 3], RGB.
        fps: frames a second.
        crf: x264's constant rate factor: 0 is lossless, 51 the worst.
        scale: whole factor by which every pixel is repeated along both sides.
        short: the shorter side, in pixels, that a clip with a longer one is shrunk to.
        sound: written as AAC, from the picture's first frame on; what is longer than the picture is cut off, what is
            shorter goes on with silence.
        bit_rate: bits a second of each of its channels.

    Raises:
        ValueError: frames of another dtype or shape, or an odd side after scaling (4:2:0 halves both sides); sound of
            another dtype or shape, of over two channels, or at a rate that AAC has not.
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
    if short is not None and min(height, width) > short:
        height, width = (round(side * short / min(height, width) / 2) * 2 for side in (height, width))
    if sound is not None:
        _check_sound(path, sound)
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            # x264's decisions depend on the number of threads, and on the processor unless it is told not to
            # (with AVX-512, one encode in some hundred differed from its twins).
            options = {"crf": str(crf), "threads": "1", "x264-params": "cpu-independent=1"}
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = MPEG_RANGE
            track = None if sound is None else _Track(container, sound, bit_rate)
            for number, array in enumerate(frames, 1):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
                frame = frame.reformat(
                    width,
                    height,
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    interpolation=Interpolation.AREA,
                )
                container.mux(stream.encode(frame))
                if track is not None:
                    track.write(number / rate)
            container.mux(stream.encode())
            if track is not None:
                track.end()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


class _Track:
    """The AAC track of a clip that is being written, beside its pictures so that a player needs not look far."""

    def __init__(self, container: av.container.OutputContainer, sound: Sound, bit_rate: int) -> None:
        self._container, self._sound, self._written = container, sound, 0
        self._layout = LAYOUTS[len(sound.samples)]
        self._stream = container.add_stream("aac", rate=sound.rate, layout=self._layout, format="fltp")
        self._stream.bit_rate = bit_rate * len(sound.samples)

    def write(self, seconds: Fraction) -> None:
        """The sound up to that time."""
        end = round(seconds * self._sound.rate)
        piece = self._sound.samples[:, self._written : end]
        piece = np.pad(piece, ((0, 0), (0, end - self._written - piece.shape[1])))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = (
            self._sound.rate,
            self._written,
            Fraction(1, self._sound.rate),
        )
        self._container.mux(self._stream.encode(frame))
        self._written = end

    def end(self) -> None:
        self._container.mux(self._stream.encode())


def _check_sound(path: str | Path, sound: Sound) -> None:
    samples = sound.samples
    if samples.dtype != np.float32 or samples.ndim != 2 or len(samples) not in LAYOUTS:
        raise ValueError(
            f"{path}: sound: float32 [1 or 2 channels, samples] wanted, {samples.dtype} {samples.shape} given"
        )
    if sound.rate not in AAC_RATES:
        raise ValueError(
            f"{path}: sound: AAC has no {sound.rate} Hz; it has {', '.join(map(str, AAC_RATES))}"
        )
