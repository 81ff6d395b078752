"""How far each point lies from its k-th nearest other one, of many points in little memory beside them."""

from __future__ import annotations

import numpy as np
import torch

from pgdpo.messages.progress import moved

ROWS, COLUMNS = 512, 1024  # points whose distances are held at a time
SPARE = 16  # candidates beyond the k-th
REFINED = 1 << 20  # numbers of the candidates that are held at a time in float64


def neighbour_entropy(points: torch.Tensor, neighbours: int) -> np.ndarray:
    """log of the distance of each point `[N, D]`, fp32, to its k-th nearest other one, k <= N - 1: float64 `[N]`.

    Products in fp32, on a GPU where there is one, name k + 16 candidates of each point, whose distances are computed in
    float64 from differences. A product is off by `_rounding` at most; a point that could lack a candidate for that,
    which takes near ties at the last one, has its candidates named anew by products in float64. So the distance is that
    of the k-th nearest, or of one whose square differs from it by twice that rounding in float64.
    """
    count = len(points)
    if count < 2:
        return np.zeros(count)
    kth = min(neighbours, count - 1)
    keep = min(kth + SPARE, count - 1)
    distances = torch.empty(count, dtype=torch.float64)
    doubtful = _nearest(points, torch.arange(count), kth, keep, torch.float32, distances)
    _nearest(points, doubtful, kth, keep, torch.float64, distances)
    return np.log(distances.numpy() + 1e-6)


def _nearest(
    points: torch.Tensor, rows: torch.Tensor, kth: int, keep: int, dtype: torch.dtype, distances: torch.Tensor
) -> torch.Tensor:
    """Fill `distances` of these rows from candidates by products in `dtype`. Returns the rows that may lack one."""
    doubtful = [rows[:0]]
    largest = max(_squares(points[first : first + COLUMNS]).max() for first in range(0, len(points), COLUMNS))
    for first in range(0, len(rows), ROWS):
        mine = rows[first : first + ROWS]
        values, candidates = _candidates(points, mine, keep, dtype)
        exact = _distances(points, mine, candidates).sort(dim=1).values[:, kth - 1]
        distances[mine] = exact
        off = _rounding(points.shape[1], dtype) * (_squares(points[mine]) + largest)
        # Who is no candidate lies, as computed, behind the last; and nobody is nearer than one that is the same.
        complete = (keep == len(points) - 1) | (exact == 0) | (values[:, -1].double() - off >= exact**2)
        doubtful.append(mine[~complete])
        moved(f"neighbours of {first + len(mine)} of {len(rows)} prompts")
    return torch.cat(doubtful)


def _candidates(
    points: torch.Tensor, rows: torch.Tensor, keep: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(squared distances, as computed, and indices of the `keep` nearest others of each row, the nearest first)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mine = points[rows].to(device, dtype)
    values = torch.full((len(rows), keep), torch.inf, dtype=dtype, device=device)
    indices = torch.zeros(len(rows), keep, dtype=torch.int64, device=device)
    for first in range(0, len(points), COLUMNS):
        others = points[first : first + COLUMNS].to(device, dtype)
        numbers = torch.arange(first, first + len(others), device=device)
        squared = (mine**2).sum(1, keepdim=True) + (others**2).sum(1) - 2 * mine @ others.T
        squared[rows.to(device)[:, None] == numbers] = torch.inf  # the point itself
        values = torch.cat([values, squared], dim=1)
        indices = torch.cat([indices, numbers.expand(len(rows), -1)], dim=1)
        values, best = values.topk(keep, dim=1, largest=False)
        indices = indices.gather(1, best)
    return values.cpu(), indices.cpu()


def _distances(points: torch.Tensor, rows: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """float64 `[rows, candidates]`, from differences."""
    step = max(1, REFINED // (candidates.shape[1] * points.shape[1]))
    return torch.cat(
        [
            (points[some].double() - points[row].double()[:, None]).norm(dim=-1)
            for row, some in zip(rows.split(step), candidates.split(step), strict=True)
        ]
    )


def _squares(points: torch.Tensor) -> torch.Tensor:
    return points.double().square().sum(1)


def _rounding(dimension: int, dtype: torch.dtype) -> float:
    """What `|a|² + |b|² - 2ab` may be off by in `dtype`, as a share of `|a|² + |b|²`: each of the three sums by
    `dimension` roundings, whatever their order, and the last two additions."""
    return (dimension + 4) * torch.finfo(dtype).eps
