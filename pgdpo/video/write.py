"""Clips into files."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

BT709 = 1  # the value of colour primaries, transfer and matrix in ITU-T H.273
MPEG_RANGE = 1


def write_video(
    path: str | Path,
    frames: np.ndarray,
    fps: float,
    *,
    crf: int = 12,
    scale: int = 1,
    short: int | None = None,
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
    if short is not None and min(height, width) > short:
        height, width = (round(side * short / min(height, width) / 2) * 2 for side in (height, width))
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
                    width,
                    height,
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    interpolation=Interpolation.AREA,
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
