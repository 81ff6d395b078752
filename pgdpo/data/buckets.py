"""Which bucket, a size of (frames, height, width), a pair's clips are cut to."""

from __future__ import annotations

from collections.abc import Sequence

from pgdpo.video import VideoInfo

Size = tuple[int, int, int]  # frames, height and width in pixels

LEAST_SHOWN = 0.5  # a centre crop that leaves less of the picture is not what was judged


def choose_bucket(sizes: Sequence[Size], clip: VideoInfo) -> int | None:
    """The bucket for a pair of clips like `clip`, or None where none fits.

    The only size there is takes every clip that is long enough. Of several, one fits that the clip has enough frames
    for and that keeps half of the picture or more. Among those the choice is, in this order: one that the picture
    covers without being enlarged, the nearest aspect ratio, the most frames, the most pixels (the fewest where the
    picture must be enlarged).
    """
    fitting = [
        number
        for number, size in enumerate(sizes)
        if size[0] <= clip.num_frames and (len(sizes) == 1 or share_shown(size, clip) >= LEAST_SHOWN)
    ]
    return min(fitting, key=lambda number: _rank(sizes[number], clip), default=None)


def size_name(size: Size) -> str:
    """`81x480x832`, as it stands in messages and file names."""
    return "x".join(map(str, size))


def _rank(size: Size, clip: VideoInfo) -> tuple:
    frames, height, width = size
    enlarged = height > clip.height or width > clip.width
    pixels = height * width
    return enlarged, -share_shown(size, clip), -frames, pixels if enlarged else -pixels


def share_shown(size: Size, clip: VideoInfo) -> float:
    """Share of the picture that is left when it is scaled to cover `size` and cropped: 1 at equal aspect ratios."""
    ratio = size[2] / size[1] * clip.height / clip.width
    return min(ratio, 1 / ratio)
