"""A pair's two clips, held against each other and against what their row says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pgdpo.data.buckets import Size
from pgdpo.data.files import sha256_of
from pgdpo.data.image import open_picture, read_image
from pgdpo.data.manifest import PairRow
from pgdpo.data.schema import SIDES
from pgdpo.data.video import VideoInfo, probe_video, read_video
from pgdpo.errors import InputError

SAID = ("width", "height", "num_frames", "fps")  # what a row may say of both clips
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # endings of masks
SAME_RATE = 0.002  # relative: rows say 24 of 24000/1001 all the time


def probe_pair(row: PairRow) -> VideoInfo:
    """Size, length and rate of both clips, which must be the row's and each other's.

    Chosen and rejected must differ in what was judged, not in these. Raises InputError naming pair and clip.
    """
    infos = []
    for side in SIDES:
        with _named(row, side):
            infos.append(probe_video(getattr(row, side)))
    chosen, rejected = infos
    for what in SAID:
        first, second = getattr(chosen, what), getattr(rejected, what)
        if not _same(what, first, second):
            raise InputError(
                f"pair `{row.id}`: {what} is {first:g} in {row.chosen} and {second:g} in {row.rejected}: both clips of "
                "a pair must be of one size, length and rate; re-encode one of them or leave the row out"
            )
        said = row.extra.get(what)
        if said is not None and not _same(what, first, said):
            raise InputError(
                f"pair `{row.id}`: its row says {what} {said:g} and {row.chosen} has {first:g}: the clip was cut or "
                "changed; fetch it again or correct the row"
            )
    return chosen


def clip_identity(row: PairRow, *, with_image: bool, hashes: Mapping[str, str] | None = None) -> dict:
    """What a pair's tensors follow from: SHA-256 of `chosen`, `rejected`, the row's `mask` and, if asked, its `image`,
    and what the row says of the clips. Raises InputError where it says another hash.

    `hashes`: the files' SHA-256 by key, where they are known; by default the files are read.
    """
    keys = files_of(row, with_image=with_image)
    hashes = {key: sha256_of(getattr(row, key)) if hashes is None else hashes[key] for key in keys}
    for side in SIDES:
        found = hashes[side]
        said = row.extra.get(f"sha256_{side}")
        if said is not None and found != said:
            raise InputError(
                f"pair `{row.id}`, {side}: the SHA-256 of {getattr(row, side)} is {found[:12]}..., its row says "
                f"{said[:12]}...: the clip was cut or changed; fetch it again or correct the row"
            )
    return hashes | {what: row.extra.get(what) for what in SAID}


def files_of(row: PairRow, *, with_image: bool) -> list[str]:
    """Keys of the files that a pair's tensors follow from."""
    keys = (*SIDES, "mask", *(["image"] if with_image else []))
    return [key for key in keys if getattr(row, key) is not None]


def read_pair(row: PairRow, size: Size) -> Iterator[tuple[str, np.ndarray]]:
    """(side, uint8 frames [F, H, W, 3] at `size`) of both clips, one after the other. Raises InputError."""
    for side in SIDES:
        with _named(row, side):
            frames = read_video(getattr(row, side), num_frames=size[0], size=size[1:])
        yield side, frames


def first_picture(row: PairRow, chosen: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [H, W, 3] that both clips start from: the row's picture, or the chosen clip's first frame."""
    if row.image is None:
        return chosen[0]
    try:
        return read_image(row.image, size[1:])
    except InputError as error:
        mend = "or leave `image` out to take the chosen clip's first frame"
        raise InputError(f"pair `{row.id}`, image: {error}, {mend}") from error


def is_picture(path: Path) -> bool:
    """Whether a mask is a picture that holds for all frames, and no clip: by its ending."""
    return path.suffix.lower() in PICTURES


def check_mask(path: Path, clip: VideoInfo) -> None:
    """Raises InputError unless a mask can be read and is as large as the pair's clips (of which `clip` is one), and one
    that is a clip as long and of their rate."""
    if is_picture(path):
        found = dict(zip(("width", "height"), open_picture(path).size, strict=True))
    else:
        info = probe_video(path)
        found = {what: getattr(info, what) for what in SAID}
    for what, value in found.items():
        wanted = getattr(clip, what)
        if not _same(what, value, wanted):
            raise InputError(
                f"{path}: {what} is {value:g} and the pair's clips have {wanted:g}: a mask has the size of its clips, "
                "and one that is a clip also their length and rate; make it anew or leave the row out"
            )


def _same(what: str, first: float, second: float) -> bool:
    return abs(first - second) <= (SAME_RATE * first if what == "fps" else 0)


@contextlib.contextmanager
def _named(row: PairRow, side: str) -> Iterator[None]:
    """Puts pair and side before the message of what is refused inside."""
    try:
        yield
    except InputError as error:
        raise InputError(f"pair `{row.id}`, {side}: {error}") from error
