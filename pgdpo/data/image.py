"""Pictures: what an image-to-video pair starts from, and masks that hold for all frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pgdpo.data.video import MAX_SIDE
from pgdpo.errors import InputError


def read_image(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """A picture as uint8 RGB `[height, width, 3]`, upright, scaled to cover `size` (height, width) and cropped
    about its centre, as clips are.

    Raises InputError if it is missing, damaged or no picture.
    """
    return np.asarray(ImageOps.fit(open_picture(path), size[::-1], method=Image.Resampling.BICUBIC))


def open_picture(path: str | Path) -> Image.Image:
    """A picture as it is, upright, in RGB. Raises InputError if it is missing, damaged or no picture."""
    try:
        with Image.open(path) as image:  # which reads the header only
            if max(image.size) > MAX_SIDE:
                raise ValueError(f"{image.width}x{image.height} pixels; up to {MAX_SIDE} a side are read")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: cannot be read as a picture ({reason}): name a PNG, JPEG or WebP file"
        ) from error
