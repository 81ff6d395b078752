"""The toy world's true reward: smooth path, constant look, prompt obeyed, measured from pixels alone; where there is
sound, harmony too: whether it belongs to them.

Every measure is continuous and relative to the frame's side and the clip's own noise, so that it holds for
rendered clips and for the blurred, noisy, small ones of a diffusion model alike.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pgdpo.toy.harmony import harmony
from pgdpo.toy.scene import COLOURS, DIRECTIONS, RADII, SHAPES, coverage, prompt_words
from pgdpo.video.sound import Sound

# Each is the deviation at which its score falls to a half; lengths in units of the frame's side.
ACCELERATION = 0.03  # root mean square of the centre's second difference per frame
COLOUR_SPREAD = 0.2  # root mean square over frames of the colour's distance to its mean, RGB in [0, 1]
OUTLINE_SPREAD = 0.5  # root of the share of the outline's energy that differs between frames
HUE_DISTANCE = 0.5  # between unit chroma vectors
SIZE_RATIO = 0.25  # in log radius

# Shapes are told apart by their correlation with drawn ones of many sizes and edges, sharp and blurred.
TEMPLATE_RADII = np.geomspace(0.08, 0.24, 14)
TEMPLATE_EDGES = (1, 2, 4)  # pixels over which the edge fades
SHAPE_GAIN = 80  # a correlation lead of 1 / 80 makes a shape e times as likely


@dataclass(frozen=True)
class ToyReward:
    """Scores in [0, 1]; `total` is the geometric mean of the three.

    smoothness: the object moves without jumps. constancy: its colour and outline stay as they are.
    obedience: it has the colour, shape, size and direction of the prompt. Each is multiplied by how far there
    is one compact object at all.
    """

    total: float
    smoothness: float
    constancy: float
    obedience: float


@dataclass(frozen=True)
class SoundingReward(ToyReward):
    """`total` is the geometric mean of the four. harmony: the tone is as high as the object, and has the timbre of the
    prompt's shape."""

    harmony: float


def true_reward(frames: np.ndarray, prompt: str, sound: Sound | None = None) -> ToyReward:
    """Score a clip against a toy prompt.

    Args:
        frames: uint8 [F, H, W, 3], F >= 3; any size, the object's size is read relative to H.
        prompt: as written by pgdpo.toy.scene, e.g. "a large green square moving up".
        sound: of the clip, where the world speaks: mono, 16,000 samples a second, an eighth of a second a frame. Its
            SoundingReward is returned then.

    Raises:
        ValueError: frames of another dtype or shape, a prompt that is none of the toy world's, or sound of another
            format or length.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 3:
        raise ValueError(f"frames: uint8 [F >= 3, H, W, 3] wanted, {frames.dtype} {frames.shape} given")
    size, colour, shape, direction = prompt_words(prompt)
    rgb = frames.astype(np.float32) / 255
    weight = _foreground(rgb)  # (F, H, W)
    mass = weight.sum((1, 2))
    centre, spread = _moments(weight, mass)  # (F, 2), (F,)
    presence = _presence(mass / weight[0].size, spread)
    looks = _frame_colours(rgb, weight)  # (F, 3)
    outlines = _recentred(weight, centre)  # (F, H, W)

    acceleration = np.diff(centre, 2, axis=0)
    smoothness = _score(np.sqrt((acceleration**2).sum(1).mean()), ACCELERATION)

    wobble = np.sqrt(((looks - looks.mean(0)) ** 2).sum(1).mean())
    mean_outline = outlines.mean(0)
    change = np.sqrt(((outlines - mean_outline) ** 2).sum() / ((outlines**2).sum() + 1e-6))
    constancy = _score(wobble, COLOUR_SPREAD) * _score(change, OUTLINE_SPREAD)

    form, measured_radius = _shape_score(mean_outline, shape)
    obeyed = [_colour_score(looks.mean(0), colour), form, _direction_score(centre, direction)]
    if size:
        obeyed.append(_score(np.log(measured_radius / RADII[size]), SIZE_RATIO))
    obedience = np.prod(obeyed)

    smoothness, constancy, obedience = (float(presence * s) for s in (smoothness, constancy, obedience))
    of_picture = smoothness * constancy * obedience
    if sound is None:
        return ToyReward(of_picture ** (1 / 3), smoothness, constancy, obedience)
    belongs = presence * harmony(sound, centre[:, 1], shape)
    return SoundingReward((of_picture * belongs) ** (1 / 4), smoothness, constancy, obedience, belongs)


def _score(deviation: float, half: float) -> float:
    """1 / (1 + (deviation / half)^2): flat where codecs and sampling deviate a little, never quite 0."""
    return float(1 / (1 + (deviation / half) ** 2))


def _foreground(rgb: np.ndarray) -> np.ndarray:
    """Soft mask [F, H, W] in [0, 1]: distance to the ground, above the noise, relative to the object's."""
    ground = np.median(rgb, axis=(0, 2), keepdims=True)  # each row has its own: the ground is a gradient
    distance = np.sqrt(((rgb - ground) ** 2).sum(-1))
    noise = np.median(distance)
    distance = np.maximum(distance - 2.5 * noise - 0.03, 0)
    # The brightest 2% are the object's inside; +0.1 keeps a clip without an object from being scaled up.
    inside = np.quantile(distance, 0.98)
    return np.minimum(distance / (inside + 0.1), 1)


def _moments(weight: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y) [F, 2] and root mean square radius [F] of the object, in units of the side."""
    _, height, width = weight.shape
    x = (np.arange(width) + 0.5) / height
    y = (np.arange(height) + 0.5) / height
    # A trace of weight at the middle makes the centre of an empty frame defined, and continuous.
    trace = 1e-4 * height * width
    total = mass + trace
    centre_x = (weight.sum(1) @ x + trace * width / height / 2) / total
    centre_y = (weight.sum(2) @ y + trace / 2) / total
    square_x = (weight.sum(1) @ x**2) / np.maximum(mass, 1e-6) - centre_x**2
    square_y = (weight.sum(2) @ y**2) / np.maximum(mass, 1e-6) - centre_y**2
    return np.stack([centre_x, centre_y], 1), np.sqrt(np.maximum(square_x + square_y, 0))


def _presence(area: np.ndarray, spread: np.ndarray) -> float:
    """How far each frame shows one compact object: 0 for an empty frame and for scattered specks."""
    there = 1 - np.exp(-area / 0.01)
    # A disc of this area has mean square radius area / (2 pi), a ring of it 5/3 of that.
    compact = np.minimum(2.2 * area / (2 * np.pi) / np.maximum(spread**2, 1e-9), 1)
    return float((there * compact).mean())


def _frame_colours(rgb: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The object's colour in each frame [F, 3], from its inside (squared weights spare the edge)."""
    inside = weight**2
    total = inside.sum((1, 2))[:, None]
    return (inside[..., None] * rgb).sum((1, 2)) / (total + 1e-3)


def _recentred(weight: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Every frame's mask moved so that its centre lies in the frame's middle (a sub-pixel Fourier shift)."""
    _, height, width = weight.shape
    move = (np.array([width / height / 2, 0.5]) - centre) * height  # pixels (x, y)
    phase_y = np.fft.fftfreq(height)[None, :, None] * move[:, 1, None, None]
    phase_x = np.fft.rfftfreq(width)[None, None, :] * move[:, 0, None, None]
    moved = np.fft.rfft2(weight) * np.exp(-2j * np.pi * (phase_x + phase_y))
    return np.fft.irfft2(moved, s=(height, width)).astype(np.float32)


def _shape_score(mask: np.ndarray, shape: str) -> tuple[float, float]:
    """How well the mask [H, W] fits `shape` and how much better than the other shapes, and its radius."""
    flat = mask.ravel() - mask.mean()
    fit = _templates(*mask.shape) @ flat / (np.linalg.norm(flat) + 1e-3)  # (shape, radius, softness)
    wanted = fit[SHAPES.index(shape)]
    best = fit.max((1, 2))
    share = np.exp(SHAPE_GAIN * (best - wanted.max())).sum()
    likely = np.exp(SHAPE_GAIN * (wanted - wanted.max())).sum(1)
    radius = np.exp(likely @ np.log(TEMPLATE_RADII) / likely.sum())
    return float(np.clip(wanted.max(), 0, 1) / share), float(radius)


@lru_cache(maxsize=4)
def _templates(height: int, width: int) -> np.ndarray:
    """Every shape at every radius, sharp to soft: float32 [shape, radius, softness, H * W], of norm 1."""
    x = ((np.arange(width) + 0.5) / height - width / height / 2)[None, :]
    y = ((np.arange(height) + 0.5) / height - 0.5)[:, None]
    drawn = [
        [
            [coverage(shape, x, y, radius, height / edge) for edge in TEMPLATE_EDGES]
            for radius in TEMPLATE_RADII
        ]
        for shape in SHAPES
    ]
    drawn = np.array(drawn, dtype=np.float32).reshape(
        len(SHAPES), len(TEMPLATE_RADII), len(TEMPLATE_EDGES), -1
    )
    drawn -= drawn.mean(-1, keepdims=True)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def _colour_score(look: np.ndarray, colour: str) -> float:
    """Nearness of the colour's chroma to the prompt's; a grey object has none and scores low."""
    chroma = look - look.mean()
    wanted = np.array(COLOURS[colour]) / 255
    wanted = wanted - wanted.mean()
    chroma = chroma / max(float(np.linalg.norm(chroma)), 0.1)
    wanted = wanted / np.linalg.norm(wanted)
    return _score(np.linalg.norm(chroma - wanted), HUE_DISTANCE)


def _direction_score(centre: np.ndarray, direction: str) -> float:
    """1 for moving straight as told, 1/4 for standing still or moving across, 0 for moving back."""
    time = np.arange(len(centre)) - (len(centre) - 1) / 2
    travel = time @ centre / (time @ time) * (len(centre) - 1)  # least squares
    along = travel @ np.array(DIRECTIONS[direction]) / (np.linalg.norm(travel) + 0.02)
    return float(((1 + along) / 2) ** 2)
