"""Region masks: where a row's clips differ, brought to the grid of their latents."""

from __future__ import annotations

import numpy as np
import torch

from pgdpo.data.clips import PairPlan, check_mask
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import PairRow
from pgdpo.rows.schema import titled
from pgdpo.video import fit_picture, read_frames
from pgdpo.video.picture import read_picture

INSIDE = 128  # of 255: a codec makes neither white nor black out of what was the other


def read_mask(row: PairRow, plan: PairPlan, grid: tuple[int, int, int], lead: int = 0) -> torch.Tensor:
    """A row's mask on the latent grid, float16 `[1, *grid]`: the share of each element's pixels that lie inside.

    The mask is a picture that holds for all frames, or a clip as long as the row's; either has the size of the clips,
    is sampled, scaled, cropped and cut as they are, and then counts as inside from half of white up. An element
    of the latents stands for the pixels of its patch, in the frames that the VAE joins in it: the first frame alone,
    the others in groups of equal length. `lead`: frames of the grid before the clip's own, which are as its first.

    Raises InputError, naming row and file, if it cannot be read, is not like the clips, or holds nothing inside.
    """
    size = plan.size
    try:
        frames = _frames(row, plan)
        inside = torch.from_numpy(frames.sum(-1, dtype=np.uint16) >= 3 * INSIDE)  # (1 | F, H, W)
        share = pooled(inside.expand(size[0], -1, -1), (grid[0] - lead, *grid[1:]))
        if not share.any():
            raise InputError(
                f"{row.mask}: nothing in it is white, so the region is empty (after the clips' crop to "
                f"{size[1]}x{size[2]}): mend the mask or leave the row out"
            )
    except InputError as error:
        raise InputError(f"{titled(row.id, row.clips, 'mask')}: {error}") from error
    return torch.cat([share[:1]] * lead + [share]).half()[None]


def pooled(inside: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """bool `[F, H, W]` of pixels -> their mean in each element of the latents, fp32 `grid` (frames, height, width)."""
    flat = torch.nn.functional.adaptive_avg_pool2d(inside[:, None].float(), grid[1:])[:, 0]
    if grid[0] == 1:
        return flat.mean(0, keepdim=True)
    first, rest = flat[:1], flat[1:]
    return torch.cat([first, rest.unflatten(0, (grid[0] - 1, -1)).mean(1)])


def _frames(row: PairRow, plan: PairPlan) -> np.ndarray:
    """uint8 `[F, H, W, 3]` at the plan's size, one frame of a picture."""
    info = check_mask(row.mask, plan.like, row.kind)
    if info is None:
        return fit_picture(read_picture(row.mask), plan.size[1:])[None]
    return read_frames(info, plan.numbers(info), plan.size[1:])
