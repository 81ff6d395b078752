"""How well a clip's sound belongs to its picture: the pitch to the object's height, the timbre to the prompt's shape.

Measured from the waveform alone, frame by frame. As all measures of the reward it is continuous, and one that codecs
move little.
"""

import numpy as np

from pgdpo.config.model import TOY_FPS
from pgdpo.toy.spectrum import SPECTRUM, spectra
from pgdpo.toy.tone import HARMONICS, MIDDLE, RATE, TIMBRES, octave_at
from pgdpo.video.sound import Sound

# Each is the deviation at which its score falls to a half.
PITCH = 0.25  # octaves: root mean square over frames
TIMBRE = 0.4  # between unit vectors of the harmonics' amplitudes
QUIET = 0.05  # root mean square of a waveform that is hardly heard

CANDIDATES = np.arange(-84, 85) / 48  # pitches, in octaves above 440 Hz: 131 to 1480 Hz
SHARPNESS = 24  # a harmonic of 0.7 of the fundamental's loudness is taken for it by 0.02%
BAND = 0.15  # octaves on both sides that count as the same harmonic: glides and windows blur it


def harmony(sound: Sound, height: np.ndarray, shape: str) -> float:
    """From 0 to 1; 0 for silence.

    Args:
        sound: mono, at 16,000 samples a second, as long as the picture.
        height: [F] of the object's centre below the upper edge, in sides.
        shape: that the prompt names.

    Raises:
        ValueError: sound of another rate or length.
    """
    samples, seconds = sound.samples, len(height) / TOY_FPS
    if sound.rate != RATE or len(samples) != 1 or abs(sound.seconds - seconds) > 1e-3:
        raise ValueError(
            f"sound: 1 channel, {RATE} a second, {seconds:g} s wanted, {len(samples)} channels, {sound.rate} a "
            f"second, {sound.seconds:g} s given"
        )
    power = spectra(samples[0], (np.arange(len(height)) + 0.5) * RATE / TOY_FPS)  # [F, points]
    likely = np.sqrt(power @ _FUNDAMENTAL) + 1e-9  # [F, pitches]
    likely = (likely / likely.max(1, keepdims=True)) ** SHARPNESS
    likely /= likely.sum(1, keepdims=True)
    away = np.sqrt((likely * (CANDIDATES - octave_at(height)[:, None]) ** 2).sum(1).mean())

    harmonics = np.stack([(likely * (power @ band)).sum(1) for band in _BANDS], axis=1)  # power [F, 4]
    pure = harmonics.sum(1) / (power.sum(1) + 1e-9)
    timbre = np.sqrt(harmonics).mean(0)
    timbre = timbre / (np.linalg.norm(timbre) + 1e-9)
    loud = 1 - np.exp(-(samples[0] ** 2).reshape(len(height), -1).mean(1) / QUIET**2)

    there = float((loud * pure).mean())
    return there * _half(away, PITCH) * _half(np.linalg.norm(timbre - TIMBRES[shape]), TIMBRE)


def _half(deviation: float, half: float) -> float:
    return float(1 / (1 + (deviation / half) ** 2))


def _bands() -> tuple[np.ndarray, np.ndarray]:
    """What points of a spectrum belong to each candidate [points, pitches]: nearly its own frequency; of each of its
    harmonics [4, points, pitches] a band."""
    octave = np.log2(np.maximum(np.fft.rfftfreq(SPECTRUM, 1 / RATE), 1) / MIDDLE)
    own = np.exp(-0.5 * ((octave[:, None] - CANDIDATES) / 0.03) ** 2)
    bands = [
        np.abs(octave[:, None] - CANDIDATES - np.log2(number)) < BAND for number in range(1, HARMONICS + 1)
    ]
    return own, np.array(bands, dtype=float)


_FUNDAMENTAL, _BANDS = _bands()
