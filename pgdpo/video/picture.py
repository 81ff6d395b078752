"""Pictures: clips of one frame, animations that Pillow reads and FFmpeg does not (WebP), masks that hold for all
frames, and what an image-to-video pair starts from."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, ImageSequence

from pgdpo.messages.errors import InputError
from pgdpo.video.info import MAX_SIDE

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")  # JPEG, PNG, BMP


def is_picture(path: Path) -> bool:
    """JPEG, PNG, BMP or WebP, stills and animations: by its first bytes, whatever its name, or by its name."""
    with path.open("rb") as stream:
        start = stream.read(16)
    return (
        path.suffix.lower() in ENDINGS
        or start.startswith(STARTS)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
    )


def read_picture(path: Path) -> np.ndarray:
    """A still as uint8 RGB `[height, width, 3]`, upright. Raises InputError if it is damaged or no picture."""
    with _opened(path) as picture:
        return _rgb(picture)


def read_image(path: Path, size: tuple[int, int]) -> np.ndarray:
    """As `read_picture`, scaled to cover `size` (height, width) and cropped about its centre, as clips are."""
    picture = Image.fromarray(read_picture(path))
    return np.asarray(ImageOps.fit(picture, size[::-1], method=Image.Resampling.BICUBIC))


class PictureSource:
    """A picture's frames; a still has one, at 0 seconds."""

    pixel, interlaced, numbered = Fraction(1), False, False

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as picture:
            self.codec = str(picture.format).lower()
            # A phone's JPEG may hold a second picture (MPO): depth, or what makes it brighter.
            self._count = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        self._last: Fraction | None = None

    def rate(self) -> None:
        return None  # its frames say how long each is shown

    def times(self) -> list[Fraction]:
        return [time for time, _ in self._frames()]

    def last(self) -> Fraction | None:
        return self._last

    def frames(self, near: Fraction | None = None) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        for time, picture in self._frames():
            yield time, av.VideoFrame.from_ndarray(_rgb(picture), format="rgb24")

    def _frames(self) -> Iterator[tuple[Fraction, Image.Image]]:
        time = Fraction(0)
        with _opened(self._path) as picture:
            if self._count == 1:
                picture.load()
                yield time, picture
                return
            for number, frame in enumerate(ImageSequence.Iterator(picture)):
                if number == 0 and picture.info.get("default_image"):
                    continue  # an APNG's for programs that don't animate
                frame.load()  # until then a WebP's frame has no duration
                yield time, frame
                self._last = Fraction(frame.info.get("duration", 0)).limit_denominator(1000) / 1000
                if not self._last:
                    raise InputError(
                        f"{self._path}: an animation whose frames have no duration: re-encode it"
                    )
                time += self._last


class _opened:
    """`with _opened(path) as picture`: what Pillow refuses inside is an InputError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Image.Image:
        try:
            self._picture = Image.open(self._path)  # which reads the header only
            if max(self._picture.size) > MAX_SIDE:
                width, height = self._picture.size
                self._picture.close()
                raise ValueError(f"{width}x{height} pixels; up to {MAX_SIDE} a side are read")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._refused(error) from error
        return self._picture

    def __exit__(self, kind, error, trace) -> None:
        self._picture.close()
        if isinstance(error, (OSError, ValueError, SyntaxError, EOFError)):
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200]
        return InputError(
            f"{self._path}: cannot be read as a picture ({reason}): name a PNG, JPEG or WebP file"
        )


def _rgb(picture: Image.Image) -> np.ndarray:
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits, which Pillow would cut off instead of scaling
        grey = np.asarray(upright).astype(np.int64).clip(0, 65535) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
    return np.array(upright.convert("RGB"))
