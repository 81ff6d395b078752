"""The toy world's codec of sound: how strong each harmonic of each pitch is, twice a frame; back by oscillators.

Latents are `[4, L, 16]`: at `[h, l, m]` stands the amplitude, in the window about step l, at h + 1 times the pitch m,
of 16 pitches a sixth of an octave apart: a harmonic constant-Q transform (Bittner et al., ISMIR 2017). A tone is a bump
over m, in each channel whose harmonic it has, and moves along m as its pitch glides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pgdpo.config.model import TOY_FPS
from pgdpo.toy.tone import HARMONICS, LOUDNESS, MIDDLE, RATE, synthesize
from pgdpo.video.sound import Sound

if TYPE_CHECKING:
    import torch

STEPS = 2  # of a frame
PITCHES, LOWEST, SPACING = 16, -1.25, 1 / 6  # octaves above 440 Hz
WINDOW = 2000  # samples: an eighth of a second, as long as a frame
SPECTRUM = 8192  # points, of the window padded with zeros
WIDTH = 0.15  # octaves: standard deviation of the bump that a pure tone makes
LATENT_MEAN, LATENT_STD = 0.12, 0.25
QUIET = 0.05  # a step whose strongest pitch is below this share of the loudest tone's has none of its own
FINGERPRINT = f"{RATE}:{STEPS}x{HARMONICS}x{PITCHES}:{LATENT_MEAN}:{LATENT_STD}"


def audio_shape(num_frames: int) -> tuple[int, int, int]:
    """`(4, L, 16)` of a clip's sound."""
    return HARMONICS, STEPS * num_frames, PITCHES


def spectra(wave: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Power spectra `[K, 4097]` of a waveform `[n]` in Hann windows of an eighth of a second about each of `centres`
    (samples); before its start and after its end it is mirrored. 1 is the peak of a sine of amplitude 1."""
    half = WINDOW // 2
    wave = np.pad(wave, half, mode="reflect" if len(wave) > half else "constant")
    window = np.hanning(WINDOW)
    pieces = np.stack([wave[centre : centre + WINDOW] for centre in centres.round().astype(int)])
    return (np.abs(np.fft.rfft(pieces * window, SPECTRUM)) * 2 / window.sum()) ** 2


def encode(sound: Sound, num_frames: int) -> torch.Tensor:
    """The waveform of a clip, `[1, n]` -> latents `[4, L, 16]`."""
    import torch  # the reward, which is measured by the same windows, is read without it

    steps = STEPS * num_frames
    power = spectra(sound.samples[0], (np.arange(steps) + 0.5) * RATE / (TOY_FPS * STEPS))
    amplitude = np.sqrt(np.maximum(power @ _WEIGHTS, 0)) / LOUDNESS
    latents = amplitude.reshape(steps, HARMONICS, PITCHES).transpose(1, 0, 2)
    return ((torch.from_numpy(latents) - LATENT_MEAN) / LATENT_STD).float()


def decode(latents: torch.Tensor) -> Sound:
    """Latents `[4, L, 16]` -> the waveform `[1, n]` of the strongest pitch of each step, with its harmonics."""
    amplitude = (latents.double() * LATENT_STD + LATENT_MEAN).clamp(min=1e-3).numpy()
    steps = np.arange(amplitude.shape[1])
    best = amplitude[0].argmax(1).clip(1, PITCHES - 2)
    # A bump is a parabola in its logarithm: its vertex lies between the pitches.
    left, middle, right = (np.log(amplitude[0, steps, best + offset]) for offset in (-1, 0, 1))
    bend = np.maximum(2 * middle - left - right, 0.1)
    place = (best + ((right - left) / (2 * bend)).clip(-1, 1)).clip(0, PITCHES - 1)
    whole = np.minimum(place.astype(int), PITCHES - 2)
    share = place - whole
    harmonics = (1 - share) * amplitude[:, steps, whole] + share * amplitude[:, steps, whole + 1]
    loud = amplitude[0].max(1) > QUIET
    octave = LOWEST + SPACING * place
    if loud.any():  # a step without a pitch of its own glides between its neighbours'
        octave = np.interp(steps, steps[loud], octave[loud])
    seconds = np.arange(round(len(steps) / (TOY_FPS * STEPS) * RATE)) / RATE
    return synthesize(seconds * TOY_FPS * STEPS - 0.5, octave, np.where(loud, harmonics, 0).T)


def _weights() -> np.ndarray:
    """What each point of a spectrum adds to each (harmonic, pitch): float64 [4097, 64], such that a sine of amplitude 1
    at a pitch gives 1."""
    frequency = np.fft.rfftfreq(SPECTRUM, 1 / RATE)
    octave = np.log2(np.maximum(frequency, 1) / MIDDLE)
    centres = np.log2(np.arange(1, HARMONICS + 1))[:, None] + LOWEST + SPACING * np.arange(PITCHES)
    away = octave[:, None] - centres.reshape(-1)
    weights = np.exp(-0.5 * (away / WIDTH) ** 2)
    window = np.abs(np.fft.fft(np.hanning(WINDOW), SPECTRUM)) ** 2
    return weights * (window[0] / window.sum())


_WEIGHTS = _weights()
