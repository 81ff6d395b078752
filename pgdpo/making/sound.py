"""Faults of a clip's sound under an untouched picture, as `corrupt.py` has them of the picture.

Each takes the clip's sound, a random generator and what reads another clip's sound, and returns sound of the same
length, rate and channels. None is louder than what it was made of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pgdpo.video import Sound

Other = Callable[[], Sound | None]
SoundFault = Callable[[Sound, np.random.Generator, Other], Sound | None]
SEAM = 0.005  # seconds over which sound is faded where it is cut: a click would give the cut away
HEARD = 1e-3  # peak, of full scale, below which a track is silence


def sound_shift(sound: Sound, rng: np.random.Generator, other: Other) -> Sound:
    """Early or late against the picture by 0.2 to 1 s, half of the clip at most. What leaves at one end comes in at
    the other: silence there would tell the clips apart by itself."""
    most = min(1.0, sound.seconds / 2)
    by = round(rng.uniform(min(0.2, most), most) * sound.rate) * int(rng.choice([-1, 1]))
    samples = np.roll(sound.samples, by, axis=1)
    return Sound(samples * _without(samples.shape[1], sound.rate, [(by % samples.shape[1],) * 2]), sound.rate)


def sound_swap(sound: Sound, rng: np.random.Generator, other: Other) -> Sound | None:
    """The wrong track: another clip's; None where there is none."""
    return other()


def sound_clip(sound: Sound, rng: np.random.Generator, other: Other) -> Sound:
    """Cut off hard at 5 to 30% of its peak, and as loud as before."""
    level = rng.uniform(0.05, 0.3) * np.abs(sound.samples).max()
    cut = sound.samples.clip(-level, level)
    return Sound((cut * (_loudness(sound.samples) / _loudness(cut))).astype(np.float32), sound.rate)


def sound_drop(sound: Sound, rng: np.random.Generator, other: Other) -> Sound:
    """Drop-outs where there is something to hear: two to four a second, each of 40 to 150 ms."""
    loud = np.abs(sound.samples).max(axis=0)
    places = np.flatnonzero(loud > 0.1 * loud.max())
    count = max(1, round(rng.uniform(2, 4) * sound.seconds))
    middles, halves = rng.choice(places, count), rng.uniform(0.02, 0.075, count) * sound.rate
    gaps = [
        (round(middle - half), round(middle + half)) for middle, half in zip(middles, halves, strict=True)
    ]
    return Sound(sound.samples * _without(len(loud), sound.rate, gaps), sound.rate)


SOUND_FAULTS: dict[str, SoundFault] = {
    f.__name__: f for f in (sound_shift, sound_swap, sound_clip, sound_drop)
}


def heard(sound: Sound) -> bool:
    """Whether there is anything but silence in it."""
    return bool(np.abs(sound.samples).max(initial=0) > HEARD)


def _without(count: int, rate: int, gaps: list[tuple[int, int]]) -> np.ndarray:
    """A gain `[count]` that is 0 within the gaps (first and last sample) and 1 away from them."""
    at, gain = np.arange(count, dtype=np.float32), np.ones(count, np.float32)
    for first, last in gaps:
        away = np.maximum(first - at, at - last) / (SEAM * rate)
        gain = np.minimum(gain, away.clip(0, 1))
    return gain


def _loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples, dtype=np.float64).mean()))
