"""Clips with a sound at a known time, each written by FFmpeg's own encoders and muxers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BEEP, WIDTH = 1000, 0.003  # Hz, seconds
FPS, FRAMES = 24, 48


def beep(rate: int, seconds: float, at: float, channels: int = 1) -> np.ndarray:
    """float32 `[channels, samples]`: a short tone that is loudest at a time, a crest of its wave there."""
    t = np.arange(round(rate * seconds)) / rate - at
    wave = 0.9 * np.exp(-((t / WIDTH) ** 2)) * np.cos(2 * np.pi * BEEP * t)
    return np.repeat(wave[None], channels, 0).astype(np.float32)


def heard(samples: np.ndarray, rate: int) -> list[float]:
    """Seconds at which each channel is loudest."""
    return [float(np.abs(channel).argmax()) / rate for channel in samples]


def write_clip(
    path: Path,
    samples: np.ndarray | list[np.ndarray],
    rate: int,
    *,
    codec: str = "aac",
    picture: str = "libx264",
    frames: int = FRAMES,
    begins: float = 0.0,
    layout: str | None = None,
) -> Path:
    """Grey frames at 24 a second with tracks of `samples`, which begin `begins` seconds after them."""
    with av.open(str(path), "w") as container:
        film = container.add_stream(picture, rate=FPS)
        film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
        tracks = []
        for each in samples if isinstance(samples, list) else [samples]:
            named = layout or {1: "mono", 2: "stereo"}[len(each)]
            stream = container.add_stream(codec, rate=rate, layout=named)
            stream.bit_rate = 160_000
            tracks.append((stream, each, named))
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 3 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(film.encode(frame))
        container.mux(film.encode())
        for stream, each, named in tracks:
            to_format = av.AudioResampler(stream.format.name, named, rate, stream.frame_size or 1024)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(each), format="fltp", layout=named)
            frame.sample_rate, frame.pts, frame.time_base = rate, round(begins * rate), Fraction(1, rate)
            for piece in [*to_format.resample(frame), *to_format.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode())
    return path


def cut_copy(whole: Path, path: Path, seconds: float) -> Path:
    """What `ffmpeg -ss ... -c copy` writes: the packets as they are, and edit lists that hide the first of both."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = [*source.streams.video, *source.streams.audio]
        copies = {stream: target.add_stream_from_template(stream) for stream in streams}
        for packet in source.demux(*streams):
            if packet.dts is None:
                continue
            offset = round(seconds / packet.time_base)
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = copies[packet.stream]
            target.mux(packet)
    return path
