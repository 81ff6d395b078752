"""Region masks: where a pair's clips differ, brought to the grid of their latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pgdpo.data.buckets import Size
from pgdpo.data.clips import SAID, same
from pgdpo.data.image import open_picture
from pgdpo.data.manifest import PairRow
from pgdpo.data.video import VideoInfo, fit_picture, probe_video, read_video
from pgdpo.errors import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
INSIDE = 128  # of 255: a codec makes neither white nor black out of what was the other


def read_mask(row: PairRow, clip: VideoInfo, size: Size, grid: tuple[int, int, int]) -> torch.Tensor:
    """A pair's mask on the latent grid, float16 `[1, *grid]`: the share of each element's pixels that lie inside.

    The mask is a picture that holds for all frames, or a clip as long as the pair's; either has the size of `clip`,
    is scaled, cropped and cut to `size` as the clips are, and then counts as inside from half of white up. An element
    of the latents stands for the pixels of its patch, in the frames that the VAE joins in it: the first frame alone,
    the others in groups of equal length.

    Raises InputError, naming pair and file, if it cannot be read, is not like the clips, or holds nothing inside.
    """
    try:
        frames = _picture(row.mask, clip, size) if _is_picture(row.mask) else _clip(row.mask, clip, size)
        inside = torch.from_numpy(frames.sum(-1, dtype=np.uint16) >= 3 * INSIDE)  # (1 | F, H, W)
        share = pooled(inside.expand(size[0], -1, -1), grid)
        if not share.any():
            raise InputError(
                f"{row.mask}: nothing in it is white, so the region is empty (after the clips' crop to "
                f"{size[1]}x{size[2]}): mend the mask or leave the row out"
            )
    except InputError as error:
        raise InputError(f"pair `{row.id}`, mask: {error}") from error
    return share.half()[None]


def pooled(inside: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """bool `[F, H, W]` of pixels -> their mean in each element of the latents, fp32 `grid` (frames, height, width)."""
    flat = torch.nn.functional.adaptive_avg_pool2d(inside[:, None].float(), grid[1:])[:, 0]
    if grid[0] == 1:
        return flat.mean(0, keepdim=True)
    first, rest = flat[:1], flat[1:]
    return torch.cat([first, rest.unflatten(0, (grid[0] - 1, -1)).mean(1)])


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _picture(path: Path, clip: VideoInfo, size: Size) -> np.ndarray:
    picture = np.asarray(open_picture(path))
    _require(path, "width", picture.shape[1], clip.width)
    _require(path, "height", picture.shape[0], clip.height)
    return fit_picture(picture, size[1:])[None]


def _clip(path: Path, clip: VideoInfo, size: Size) -> np.ndarray:
    mask = probe_video(path)
    for what in SAID:
        _require(path, what, getattr(mask, what), getattr(clip, what))
    return read_video(path, num_frames=size[0], size=size[1:])


def _require(path: Path, what: str, found: float, wanted: float) -> None:
    if not same(what, found, wanted):
        raise InputError(
            f"{path}: {what} is {found:g} and the pair's clips have {wanted:g}: a mask has the size of its clips, and "
            "one that is a clip also their length and rate; make it anew or leave the row out"
        )
