"""What a scene sounds like: one tone whose pitch follows the height of the object's path, whole or with one defect.

The higher the object, the higher the tone: 440 Hz at half the frame's height, three octaves over all of it. Its timbre,
the strength of its harmonics, is the shape's. As with scenes, all is a pure function.
"""

from dataclasses import dataclass, replace

import numpy as np

from pgdpo.toy.scene import DEFECTS, SHAPES, SPLITS, Scene, prompt_words
from pgdpo.video.sound import Sound

RATE = 16000
MIDDLE, OCTAVES = 440.0, 3.0  # Hz at half the height; octaves from the lower edge to the upper
LOUDNESS = 0.4  # of the waveform: the root of the sum of its harmonics' squared amplitudes
# Amplitudes of the first four harmonics: the fundamental is always the strongest.
TIMBRES = {
    shape: np.array(harmonics) / np.linalg.norm(harmonics)
    for shape, harmonics in zip(
        SHAPES, ((1, 0, 0, 0), (1, 0, 0.7, 0), (1, 0.7, 0, 0), (1, 0, 0, 0.7)), strict=True
    )
}
HARMONICS = 4
FAULTS = ("picture", "sound", "both")
SOUND_DEFECTS = ("path", "wobble", "late", "timbre")
LATEST = 4  # frames that a tone comes late by, of strength 1


@dataclass(frozen=True)
class Tone:
    """What a clip sounds like. F is the number of frames.

    octave: [F] pitch in the middle of each frame, in octaves above 440 Hz; harmonics: [4] amplitudes.
    """

    octave: np.ndarray
    harmonics: np.ndarray


def octave_at(height: np.ndarray) -> np.ndarray:
    """The pitch of an object whose centre is so far below the frame's upper edge, in sides: octaves above 440 Hz."""
    return OCTAVES * (0.5 - height)


def tone_of(scene: Scene) -> Tone:
    """The tone that belongs to what a scene shows, and to the shape that its prompt names."""
    return Tone(octave_at(scene.position[:, 1]), TIMBRES[prompt_words(scene.prompt)[2]])


def faults_of(seed: int, index: int, split: str) -> tuple[str, str]:
    """Where the rejected clips of row `index` are faulty, one of FAULTS, and what its sound has where it is."""
    rng = _draws(seed, index, split)
    return FAULTS[rng.integers(len(FAULTS))], SOUND_DEFECTS[rng.integers(len(SOUND_DEFECTS))]


def voiced(
    whole: Scene, faulty: Scene, strength: float, *, seed: int, index: int, split: str, grade: int = 1
) -> tuple[Scene, Tone]:
    """A rejected clip of row `index` in the sounding world: the scene, which is `whole` where the sound alone is
    faulty, and its tone, which follows what is seen unless it is faulty itself.

    Args:
        strength: of the picture's defect, and of the sound's.
        grade: of a group, which clip it is: each has draws of its own.
    """
    faults, defect = faults_of(seed, index, split)
    scene = whole if faults == "sound" else faulty
    tone = tone_of(scene)
    if faults != "picture":
        tone = with_sound_defect(_draws(seed, index, split, grade), tone, defect, strength)
    return scene, tone


def _draws(seed: int, index: int, split: str, *grade: int) -> np.random.Generator:
    """Of the sound: no defect of the picture has these, so that a scene is the same with it."""
    return np.random.default_rng([seed, SPLITS.index(split), index, len(DEFECTS), *grade])


def with_sound_defect(rng: np.random.Generator, tone: Tone, defect: str, strength: float) -> Tone:
    """The tone with one defect, proportional to `strength` in [0, 1] for equal random draws."""
    num_frames = len(tone.octave)
    if defect == "path":  # it follows another object: one that starts and ends elsewhere
        away = rng.choice([-1, 1]) * rng.uniform(0.6, 1.0)
        slope = rng.choice([-1, 1]) * rng.uniform(0.4, 0.8)
        return replace(
            tone, octave=tone.octave + strength * (away + slope * np.linspace(-0.5, 0.5, num_frames))
        )
    if defect == "wobble":  # it leaves the path, up and down
        leap = rng.uniform(0.5, 0.9, num_frames) * rng.choice([-1, 1], num_frames)
        return replace(tone, octave=tone.octave + strength * leap)
    if defect == "late":  # it belongs to what was seen before, and begins far from it
        start = tone.octave[0] + rng.choice([-1, 1]) * 0.8
        told = np.concatenate([np.full(LATEST, start), tone.octave])
        frames = np.arange(num_frames) + LATEST * (1 - strength)
        return replace(tone, octave=np.interp(frames, np.arange(len(told)), told))
    if defect == "timbre":
        others = [
            harmonics for harmonics in TIMBRES.values() if not np.array_equal(harmonics, tone.harmonics)
        ]
        mixed = (1 - strength) * tone.harmonics + strength * others[rng.integers(len(others))]
        return replace(tone, harmonics=mixed / np.linalg.norm(mixed))
    raise ValueError(f"defect {defect!r}: one of {SOUND_DEFECTS}")


def play(tone: Tone, fps: float) -> Sound:
    """The waveform of a tone, as long as its frames: its phase never breaks."""
    seconds = np.arange(round(len(tone.octave) / fps * RATE)) / RATE
    return synthesize(seconds * fps - 0.5, tone.octave, np.tile(tone.harmonics, (len(tone.octave), 1)))


def synthesize(place: np.ndarray, octave: np.ndarray, harmonics: np.ndarray) -> Sound:
    """Harmonics of a gliding pitch.

    Args:
        place: [n] where each sample stands among the K points that pitch and amplitudes are given at.
        octave: [K] octaves above 440 Hz.
        harmonics: [K, 4] amplitudes, of which (1, 0, 0, 0) is as loud as any timbre.
    """
    points = np.arange(len(octave))
    phase = 2 * np.pi * np.cumsum(MIDDLE * 2 ** np.interp(place, points, octave)) / RATE
    wave = sum(
        np.interp(place, points, amplitude) * np.sin(number * phase)
        for number, amplitude in enumerate(harmonics.T, start=1)
    )
    return Sound((LOUDNESS * wave)[None].astype(np.float32), RATE)
