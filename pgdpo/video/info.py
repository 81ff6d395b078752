"""What a clip is, as a viewer is shown it; and which of its frames are on screen when."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal

from pgdpo.messages.errors import InputError
from pgdpo.video.sound import SoundInfo
from pgdpo.video.track import probe_track

Light = Literal["sdr", "pq", "hlg"]
MAX_SIDE = 8192  # pixels; a header that says more is damaged or hostile, and its frames would fill the memory
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
    # How a stored frame is turned: see `shape.upright`.
    orientation: tuple[bool, bool, bool] = (False, False, False)
    # Seconds for which the last frame is shown, where that is not the others' step.
    last: Fraction | None = None
    start: Fraction | None = None  # the first frame's own time; None: frames have none, and are counted
    # Seconds after the first frame.
    times: tuple[Fraction, ...] = field(default=(), repr=False, compare=False)
    path: Path | None = field(default=None, repr=False, compare=False)

    @property
    def duration(self) -> float:
        """Seconds that the clip is on screen."""
        return float(self.times[-1] + self._last) if self.fps and self.times else 0.0

    @property
    def _last(self) -> Fraction:
        return 1 / exact(self.fps) if self.last is None else self.last

    @property
    def treatment(self) -> str:
        """What is done to its frames besides scaling and cropping, by name; empty for an ordinary clip."""
        parts = ["yadif"] if self.interlaced else []
        parts += ["mirrored"] if self.mirrored else []
        parts += [f"pixels {self.pixel.numerator}:{self.pixel.denominator}"] if self.pixel != 1 else []
        parts += [self.light] if self.light != "sdr" else []
        parts += [self.wide] if self.wide and self.light == "sdr" else []
        return ", ".join(parts)

    @property
    def mirrored(self) -> bool:
        transposed, left_right, upside_down = self.orientation
        return transposed ^ left_right ^ upside_down

    @functools.cached_property
    def sound(self) -> SoundInfo | None:
        """Its track, looked at when it is first asked for; None: it has none. Raises InputError for one that does not
        decode."""
        return probe_track(self.path, self.start or Fraction(0)) if self.path and self.fps else None

    def rate_at(self, fps: float | None) -> Fraction | None:
        """The rate that it is sampled at where `fps` is asked for: its own where they are the same but for NTSC's
        thousandth; None: its frames one by one."""
        if fps is None or self.num_frames == 1:
            return None
        if not self.variable and abs(self.fps - fps) <= SAME_RATE * self.fps:
            return exact(self.fps)
        return exact(fps)

    def frames_at(self, fps: float | None) -> int:
        """How many frames it gives at that rate, from its first one on."""
        rate = self.rate_at(fps)
        if rate is None:
            return self.num_frames
        shown = self.times[-1] + self._last - Fraction(1, 2) / exact(self.fps)
        return max(1, int(shown * rate) + 1)

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


def exact(fps: float) -> Fraction:
    """24000/1001 of 23.976..."""
    return Fraction(fps).limit_denominator(1001) or Fraction(fps)


def _nearest(times: Sequence[Fraction], at: Fraction) -> int:
    after = min(bisect.bisect_left(times, at), len(times) - 1)
    before = max(after - 1, 0)
    return before if at - times[before] <= times[after] - at else after
