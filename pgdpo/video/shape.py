"""A decoded frame as a viewer sees it: upright, with square pixels, scaled to cover a size and cropped to it."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from pgdpo.video.info import VideoInfo
from pgdpo.video.light import to_sdr

UPRIGHT = (False, False, False)
UNSPECIFIED = 2  # of ITU-T H.273's matrices
SKEWED = 0.01


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
        transposed = self._info.orientation[0]
        size = self._size[::-1] if self._size is not None and transposed else self._size
        width, height, interpolation = _covering(frame, self._info.pixel, size)
        form = "rgb24" if self._ordinary else "rgb48le"
        # HDR that says no matrix is BT.2020's, as its primaries are; SDR is BT.601's, as FFmpeg has it.
        untold = self._info.light != "sdr" and frame.colorspace == UNSPECIFIED
        matrix = Colorspace.BT2020 if untold else None
        rgb = self._scaler.reformat(
            frame, width, height, form, src_colorspace=matrix, interpolation=interpolation
        ).to_ndarray()
        rgb = upright(rgb, self._info.orientation)
        if self._size is not None:
            top, left = (rgb.shape[0] - self._size[0]) // 2, (rgb.shape[1] - self._size[1]) // 2
            rgb = rgb[top : top + self._size[0], left : left + self._size[1]]
        return rgb if self._ordinary else to_sdr(rgb, self._info.light, self._info.wide)


def orientation_of(frame: av.VideoFrame) -> tuple[bool, bool, bool] | None:
    """Whether a frame is shown with rows and columns exchanged, then mirrored left to right, then upside down: by its
    display matrix (ISO/IEC 14496-12, 6.2.2). None where it is turned by no multiple of 90 degrees. Of a clip's later
    frames those without a matrix are as the first."""
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # another kind of side data, which PyAV has no name for
        return {0: UPRIGHT, 90: (True, False, True), 180: (False, True, True), 270: (True, True, False)}.get(
            frame.rotation % 360
        )
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float) / 65536
    if max(abs(b), abs(c)) < SKEWED * min(abs(a), abs(d)):
        return False, bool(a < 0), bool(d < 0)
    if max(abs(a), abs(d)) < SKEWED * min(abs(b), abs(c)):
        return True, bool(c < 0), bool(b < 0)
    return None


def upright(picture: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """A stored picture `[H, W, 3]` as it is shown."""
    transposed, left_right, upside_down = orientation
    picture = picture.swapaxes(0, 1) if transposed else picture
    return picture[:: -1 if upside_down else 1, :: -1 if left_right else 1]


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
