"""Region masks: where a pair's clips differ, brought to the grid of their latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pgdpo.data.buckets import Size
from pgdpo.data.clips import check_mask, is_picture
from pgdpo.data.image import open_picture
from pgdpo.data.manifest import PairRow
from pgdpo.data.video import VideoInfo, fit_picture, read_video
from pgdpo.errors import InputError

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
        check_mask(row.mask, clip)
        frames = _frames(row.mask, size)
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


def _frames(path: Path, size: Size) -> np.ndarray:
    """uint8 `[F, H, W, 3]` at `size`, one frame of a picture."""
    if is_picture(path):
        return fit_picture(np.asarray(open_picture(path)), size[1:])[None]
    return read_video(path, num_frames=size[0], size=size[1:])
