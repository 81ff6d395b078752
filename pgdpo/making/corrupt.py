"""Frame-level corruption of a real clip: what the toy world's rejected clips have, on clips of your own.

Each takes uint8 frames `[F, H, W, 3]` and a random generator, and returns frames of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Corruption = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def shuffle(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stretch of frames in another order: motion without direction."""
    first, last = _stretch(len(frames), rng)
    order = np.arange(len(frames))
    part = rng.permutation(order[first:last])
    if (part == order[first:last]).all():
        part = part[::-1]
    order[first:last] = part
    return frames[order]


def stutter(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A stretch stands still and then jumps on."""
    first, last = _stretch(len(frames), rng)
    corrupted = frames.copy()
    corrupted[first:last] = frames[first]
    return corrupted


def flicker(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness jumps from frame to frame."""
    gain = 1 + rng.uniform(0.15, 0.4) * rng.choice([-1.0, 1.0], size=(len(frames), 1, 1, 1))
    return (frames * gain).clip(0, 255).round().astype(np.uint8)


def tear(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Below a line the picture is shifted sideways, by another amount in each frame."""
    corrupted, (height, width) = frames.copy(), frames.shape[1:3]
    line = int(rng.integers(height // 4, max(height // 4 + 1, 3 * height // 4)))
    most = max(2, width // 5)
    for number in range(len(frames)):
        shift = int(rng.integers(1, most)) * (1 if number % 2 else -1)
        corrupted[number, line:] = np.roll(frames[number, line:], shift, axis=1)
    return corrupted


def reverse(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Time runs backwards."""
    return frames[::-1].copy()


CORRUPTIONS: dict[str, Corruption] = {f.__name__: f for f in (shuffle, stutter, flicker, tear, reverse)}


def _stretch(frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """At least three frames, or all there are, and at most two thirds of the clip."""
    length = min(frames, int(rng.integers(3, max(4, 2 * frames // 3 + 1))))
    first = int(rng.integers(0, frames - length + 1))
    return first, first + length
