"""The toy world's scenes: one coloured shape crossing a dark ground, whole or with one defect.

Everything is a pure function: example i of a split depends on (seed, split, i) alone, and a scene's frames on
the scene alone. All lengths are in units of the frame's side, so a scene renders at any resolution.
"""

from dataclasses import dataclass, replace

import numpy as np

# Hues are kept far apart, so that neither 4:2:0 video nor a small model's blur confuses two of them.
COLOURS = {
    "red": (240, 62, 62),
    "yellow": (250, 200, 45),
    "green": (56, 196, 84),
    "cyan": (44, 208, 226),
    "blue": (66, 98, 255),
    "pink": (238, 82, 222),
}
SHAPES = ("circle", "square", "triangle", "ring")
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}  # x, y (downwards)
RADII = {"small": 0.11, "": 0.14, "large": 0.17}  # of the circle of equal area
DEFECTS = ("flicker", "jump", "tear", "colour", "shape", "direction")
BACKGROUND_TOP, BACKGROUND_BOTTOM = (13, 15, 28), (27, 29, 50)
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Scene:
    """What a clip shows. F is the number of frames; colours are RGB in [0, 1].

    position: [F, 2] centre (x, y); colour: [F, 3]; bands: [F, B] sideways shift of B equal horizontal bands.
    The picture is `shape` cross-faded with `other_shape` by `blend` in [0, 1]; `radius` is that of the circle
    of equal area.
    """

    prompt: str
    shape: str
    radius: float
    position: np.ndarray
    colour: np.ndarray
    bands: np.ndarray
    other_shape: str = "circle"
    blend: float = 0.0


@dataclass(frozen=True)
class Example:
    """A preference pair before rendering: two clips of one prompt; `strength` in (0.1, 1] of the `defect`."""

    prompt: str
    chosen: Scene
    rejected: Scene
    defect: str
    strength: float


@dataclass(frozen=True)
class Group:
    """K clips of one prompt before rendering: `scenes[0]` is flawless, the others are the same with one `defect`, of
    the `strengths` (0 for the flawless one), which rise."""

    prompt: str
    scenes: tuple[Scene, ...]
    defect: str
    strengths: tuple[float, ...]


def prompt_words(prompt: str) -> tuple[str, str, str, str]:
    """(size, colour, shape, direction) that a toy prompt asks for; size is "" where the prompt says none.

    Raises:
        ValueError: the prompt is none of the toy world's.
    """
    words = prompt.split()
    found = [[name for name in names if name in words] for names in (RADII, COLOURS, SHAPES, DIRECTIONS)]
    if [len(names) for names in found[1:]] != [1, 1, 1] or len(found[0]) > 1:
        raise ValueError(f"{prompt!r}: no toy prompt; one reads 'a large green square moving up'")
    return (found[0] or [""])[0], found[1][0], found[2][0], found[3][0]


def example(
    seed: int,
    index: int,
    *,
    split: str = "train",
    num_frames: int = 12,
    defect: str | None = None,
    strength: float | None = None,
) -> Example:
    """Pair `index` of a split; every second held-out prompt is a combination that training never shows.

    Args:
        defect: one of DEFECTS instead of the drawn one.
        strength: instead of the drawn one; all else stays as drawn, so that clips can be compared over it.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    size, colour, shape, direction = _draw_words(rng, unseen=split == "held_out" and index % 2 == 1)
    chosen = _draw_scene(rng, size, colour, shape, direction, num_frames)
    drawn_defect, drawn_strength = DEFECTS[rng.integers(len(DEFECTS))], 1.0 - 0.9 * rng.random()
    defect = drawn_defect if defect is None else defect
    strength = drawn_strength if strength is None else strength
    rng = np.random.default_rng([seed, SPLITS.index(split), index, DEFECTS.index(defect)])
    return Example(chosen.prompt, chosen, _with_defect(rng, chosen, defect, strength), defect, strength)


def group(seed: int, index: int, samples: int, *, split: str = "train", num_frames: int = 12) -> Group:
    """Group `index` of a split: the prompt, the flawless scene and the defect of the pair of that index.

    Args:
        samples: clips, 2 or more. The strengths are one of each of `samples` - 1 equal parts of (0.1, 1], and each
            clip's defect is drawn by itself.
    """
    pair = example(seed, index, split=split, num_frames=num_frames)
    scenes, strengths = [pair.chosen], [0.0]
    for grade in range(1, samples):
        rng = np.random.default_rng([seed, SPLITS.index(split), index, DEFECTS.index(pair.defect), grade])
        strengths.append(0.1 + 0.9 * (grade - rng.random()) / (samples - 1))
        scenes.append(_with_defect(rng, pair.chosen, pair.defect, strengths[-1]))
    return Group(pair.prompt, tuple(scenes), pair.defect, tuple(strengths))


def render(scene: Scene, side: int = 64) -> np.ndarray:
    """A scene's clip: uint8 [F, side, side, 3], edges anti-aliased by the distance to the outline."""
    centres = (np.arange(side, dtype=np.float32) + 0.5) / side
    num_bands = scene.bands.shape[1]
    shift = scene.bands[:, (centres * num_bands).astype(int)]  # (F, H)
    x = centres[None, None, :] - scene.position[:, None, None, 0] - shift[:, :, None]  # (F, H, W)
    y = centres[None, :, None] - scene.position[:, None, None, 1]
    cover = coverage(scene.shape, x, y, scene.radius, side)
    if scene.blend:
        cover += scene.blend * (coverage(scene.other_shape, x, y, scene.radius, side) - cover)
    cover = cover[..., None]
    ground = np.linspace(BACKGROUND_TOP, BACKGROUND_BOTTOM, side, dtype=np.float32)[None, :, None]
    frames = ground * (1 - cover) + 255.0 * scene.colour[:, None, None] * cover
    return np.round(frames).clip(0, 255).astype(np.uint8)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float, side: float) -> np.ndarray:
    """Share of each pixel inside the outline, for pixels of 1 / side about the points (x, y)."""
    return np.clip(0.5 - outline(shape, x, y, radius) * side, 0, 1)


def outline(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance (below 0 inside) to a shape about its centroid, of the area of a circle of `radius`."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius * np.sqrt(np.pi) / 2
    if shape == "triangle":  # equilateral, tip up: area 3 sqrt(3) inradius^2
        slanted = np.abs(x) * (np.sqrt(3) / 2) - y / 2
        return np.maximum(slanted, y + 0 * x) - radius * np.sqrt(np.pi / np.sqrt(27))
    if shape == "ring":  # its hole has half its outer radius: area 3/4 pi outer^2
        outer = radius / np.sqrt(0.75)
        return np.abs(np.hypot(x, y) - 0.75 * outer) - 0.25 * outer
    raise ValueError(f"shape {shape!r}: one of {SHAPES}")


def _draw_words(rng: np.random.Generator, unseen: bool) -> tuple[str, str, str, str]:
    """Words of a prompt. One (colour, shape, direction) combination in six is kept from training."""
    while True:
        c, s, d = rng.integers(len(COLOURS)), rng.integers(len(SHAPES)), rng.integers(len(DIRECTIONS))
        if ((c + s + d) % 6 == 0) == unseen:
            size = rng.choice(["small", "", "", "large"])
            return str(size), list(COLOURS)[c], SHAPES[s], list(DIRECTIONS)[d]


def _draw_scene(
    rng: np.random.Generator, size: str, colour: str, shape: str, direction: str, num_frames: int
) -> Scene:
    """A flawless clip: constant velocity, colour and outline, never leaving the frame."""
    radius = RADII[size] * rng.uniform(0.96, 1.04)
    along = np.array(DIRECTIONS[direction])
    travel = rng.uniform(0.32, 0.42)
    middle = 0.5 + along * rng.uniform(-0.015, 0.015) + along[::-1] * rng.uniform(-0.2, 0.2)
    position = middle + np.linspace(-0.5, 0.5, num_frames)[:, None] * travel * along
    prompt = " ".join(f"a {size} {colour} {shape} moving {direction}".split())
    rgb = np.tile(np.array(COLOURS[colour]) / 255, (num_frames, 1))
    return Scene(prompt, shape, radius, position, rgb, np.zeros((num_frames, 1)))


def _with_defect(rng: np.random.Generator, scene: Scene, defect: str, strength: float) -> Scene:
    """The scene with one defect, proportional to `strength` in [0, 1] for equal random draws."""
    num_frames = len(scene.position)
    if defect == "flicker":  # every other frame darkens and turns towards another hue
        dark = scene.colour * 0.25
        other = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))]) / 255
        amount = strength * rng.uniform(0.6, 1.0, (num_frames, 1)) * (np.arange(num_frames) % 2)[:, None]
        return replace(scene, colour=scene.colour * (1 - amount) + amount * (0.7 * dark + 0.3 * other))
    if defect == "jump":
        angle = rng.uniform(0, 2 * np.pi, num_frames)
        leap = rng.uniform(0.05, 0.12, num_frames)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return replace(scene, position=scene.position + strength * leap)
    if defect == "tear":
        bands = rng.uniform(0.05, 0.14, (num_frames, 16)) * rng.choice([-1, 0, 1], (num_frames, 16))
        torn = (rng.random((num_frames, 1)) < 0.6) | (np.arange(num_frames)[:, None] % 4 == 1)
        return replace(scene, bands=strength * bands * torn)
    if defect == "colour":
        _, name, _, _ = prompt_words(scene.prompt)
        others = [rgb for other, rgb in COLOURS.items() if other != name]
        wrong = np.array(others[rng.integers(len(others))]) / 255
        return replace(scene, colour=(1 - strength) * scene.colour + strength * wrong)
    if defect == "shape":
        others = [other for other in SHAPES if other != scene.shape]
        return replace(scene, other_shape=others[rng.integers(len(others))], blend=strength)
    if defect == "direction":  # the path turned about its middle, by up to a quarter or half a circle
        turn = strength * np.pi / 2 * rng.choice([-2, -1, 1, 2])
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        middle = scene.position.mean(0)
        turned = middle + (scene.position - middle) @ rotation
        return replace(scene, position=turned)
    raise ValueError(f"defect {defect!r}: one of {DEFECTS}")
