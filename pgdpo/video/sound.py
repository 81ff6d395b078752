"""The sound of a clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SoundFormat:
    """What a model takes: samples a second, and channels (1 or 2)."""

    rate: int
    channels: int

    def __str__(self) -> str:
        return f"{self.rate:,} Hz {LAYOUTS[self.channels]}"


@dataclass(frozen=True)
class Sound:
    """A waveform."""

    samples: np.ndarray = field(repr=False, compare=False)  # float32 [channels, samples], -1 to 1
    rate: int  # samples a second

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.rate


@dataclass(frozen=True)
class SoundInfo:
    """The track that a player plays with a clip.

    `rate` in samples a second. `start`: seconds after the picture's first shown frame at which it begins, below 0 where
    it begins earlier; `seconds`: how long it is, by its packets' times. `tracks`: how many the file has.
    """

    codec: str
    rate: int
    channels: int
    start: float
    seconds: float
    tracks: int = 1

    @property
    def end(self) -> float:
        """Seconds after the picture's first shown frame at which it ends."""
        return self.start + self.seconds

    def __str__(self) -> str:
        return f"{self.rate:,} Hz {LAYOUTS.get(self.channels, f'{self.channels} channels')}"


LAYOUTS = {1: "mono", 2: "stereo"}  # as FFmpeg names them
