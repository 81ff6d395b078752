"""What a clip is, as a viewer is shown it; and which of its frames are on screen when."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pgdpo.errors import InputError

Light = Literal["sdr", "pq", "hlg"]
SAME_RATE = 0.002  # relative: 24 is said of 24000/1001 all the time


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    `width` and `height` in pixels as displayed: upright, and with square pixels. `fps` in frames a second, of a clip
    of variable rate the commonest step's; 0 of a picture. `num_frames` that are shown: not those that an edit list
    hides. `stored`: the sides as they are coded, before rotation and scaling to square pixels.
    """

    width: int
    height: int
    fps: float
    num_frames: int
    codec: str
    variable: bool = False  # frames are not equally long
    interlaced: bool = False
    light: Light = "sdr"
    wide: str = ""  # primaries beyond BT.709: `bt2020` or `p3`
    stored: tuple[int, int] = (0, 0)
    pixel: Fraction = Fraction(1)  # sample aspect ratio
    times: tuple[Fraction, ...] = field(
        default=(), repr=False, compare=False
    )  # seconds after the first frame
    path: Path | None = field(default=None, repr=False, compare=False)

    @property
    def duration(self) -> float:
        """Seconds that the clip is on screen."""
        if not self.fps:
            return 0.0
        return float(self.times[-1]) + 1 / self.fps if self.times else self.num_frames / self.fps

    @property
    def treatment(self) -> str:
        """What is done to its frames besides scaling and cropping, by name; empty for an ordinary clip."""
        parts = ["yadif"] if self.interlaced else []
        parts += [f"pixels {self.pixel.numerator}:{self.pixel.denominator}"] if self.pixel != 1 else []
        parts += [self.light] if self.light != "sdr" else []
        parts += [self.wide] if self.wide and self.light == "sdr" else []
        return ", ".join(parts)

    def rate_at(self, fps: float | None) -> Fraction | None:
        """The rate that it is sampled at where `fps` is asked for: its own where they are the same but for NTSC's
        thousandth; None: its frames one by one."""
        if fps is None or self.num_frames == 1:
            return None
        if not self.variable and abs(self.fps - fps) <= SAME_RATE * self.fps:
            return Fraction(self.fps).limit_denominator(1001)
        return Fraction(fps).limit_denominator(1001)

    def frames_at(self, fps: float | None) -> int:
        """How many frames it gives at that rate, from its first one on."""
        rate = self.rate_at(fps)
        if rate is None:
            return self.num_frames
        shown = self.times[-1] + Fraction(1, 2) / Fraction(self.fps).limit_denominator(1001)
        return int(shown * rate) + 1

    def numbers_at(self, fps: float | None, first: int, count: int) -> list[int]:
        """Numbers of the `count` frames that are nearest to the times `first` / fps, (`first` + 1) / fps, ...; of two
        that are equally near, the earlier."""
        rate = self.rate_at(fps)
        if rate is None:
            return list(range(first, first + count))
        return [_nearest(self.times, tick / rate) for tick in range(first, first + count)]

    def check_rate(self, fps: float | None, *, upsample: bool = False) -> None:
        """Raises InputError where frames would have to be repeated to reach `fps`, unless they may be."""
        if fps is None or upsample or self.num_frames == 1 or self.fps >= fps * (1 - SAME_RATE):
            return
        raise InputError(
            f"{self.path}: has {self.fps:g} frames a second and {fps:g} are asked for, which would repeat frames: ask "
            f"for at most {self.fps:g} (data.fps), leave the clip out, or have frames repeated (data.upsample)"
        )


def _nearest(times: Sequence[Fraction], at: Fraction) -> int:
    after = min(bisect.bisect_left(times, at), len(times) - 1)
    before = max(after - 1, 0)
    return before if at - times[before] <= times[after] - at else after
