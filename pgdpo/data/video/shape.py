"""A decoded frame as a viewer sees it: upright, with square pixels, scaled to cover a size and cropped to it."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from pgdpo.data.video.info import VideoInfo
from pgdpo.data.video.light import to_sdr


class Shaper:
    """Frames of one clip -> uint8 RGB `[height, width, 3]`, perhaps views of the frame's memory.

    `size`: (height, width) in pixels; the frame is scaled with its aspect ratio kept until it covers `size` (area
    filter when it shrinks, bicubic when it grows) and cropped about its centre. None: its own size.
    """

    def __init__(self, info: VideoInfo, size: tuple[int, int] | None) -> None:
        self._info, self._size = info, size
        self._scaler = VideoReformatter()  # one for the clip: it keeps its tables from frame to frame
        self._ordinary = info.light == "sdr" and not info.wide

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        turns = frame.rotation // 90 % 4
        width, height, interpolation = _covering(
            frame, self._info.pixel, self._size if turns % 2 == 0 or self._size is None else self._size[::-1]
        )
        form = "rgb24" if self._ordinary else "rgb48le"
        rgb = self._scaler.reformat(frame, width, height, form, interpolation=interpolation).to_ndarray()
        rgb = np.rot90(rgb, turns)
        if self._size is not None:
            top, left = (rgb.shape[0] - self._size[0]) // 2, (rgb.shape[1] - self._size[1]) // 2
            rgb = rgb[top : top + self._size[0], left : left + self._size[1]]
        return rgb if self._ordinary else to_sdr(rgb, self._info.light, self._info.wide)


def _covering(
    frame: av.VideoFrame, pixel: Fraction, size: tuple[int, int] | None
) -> tuple[int, int, Interpolation]:
    """(width, height) that a stored frame is scaled to, in one step, and the filter."""
    if size is None:
        if pixel == 1:
            return frame.width, frame.height, Interpolation.BICUBIC
        return round(frame.width * pixel), frame.height, Interpolation.BICUBIC
    shown = frame.width * pixel
    ratio = max(Fraction(size[0], frame.height), size[1] / shown)
    width, height = max(round(shown * ratio), size[1]), max(round(frame.height * ratio), size[0])
    shrinks = ratio < 1 and ratio * pixel < 1
    return width, height, Interpolation.AREA if shrinks else Interpolation.BICUBIC


def fit_picture(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture, uint8 RGB [height, width, 3], scaled to cover `size` and cropped to it as frames of a clip are."""
    height, width = picture.shape[:2]
    shape = Shaper(VideoInfo(width, height, 0.0, 1, "picture"), size)
    return np.array(shape(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
