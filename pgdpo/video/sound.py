"""The sound of a clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SoundFormat:
    """What a model takes: samples a second, and channels."""

    rate: int
    channels: int


@dataclass(frozen=True)
class Sound:
    """A waveform."""

    samples: np.ndarray = field(repr=False, compare=False)  # float32 [channels, samples], -1 to 1
    rate: int  # samples a second

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.rate
