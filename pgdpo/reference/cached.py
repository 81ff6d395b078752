"""The reference as numbers computed beforehand: no second model, and no forward of it in a training step.

What is kept of a (group, draw) is the sum over each latent frame of the reference's squared residuals, in float64 from
the predictions as they are. The policy's are summed by the same function, and the excess is their difference, in
float64 too: it is exactly 0 where policy and reference agree to the last bit, and its rounding, 1e-16 of an error, is
beyond what fp32 can show. The difference of fp32 means would be good to 1e-7 of an error, which a beta of 5000 turns
into 2e-4 of a logit. Sums per frame serve any temporal segments.

In fp32 a run has the losses that it has beside a live reference to 1e-6 (tests/training/test_references.py). A live
excess is accumulated in fp32, so that the two differ in last bits, which Adam magnifies where a gradient is nearly 0:
a large beta with a large learning rate lets them part further after some steps. The first step's margin is exactly 0
where the errors were computed in micro-batches of the same size: another size may round a prediction otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch

from pgdpo.diffusion.streams import Latents, by_stream, each
from pgdpo.messages.errors import InputError
from pgdpo.models.protocols import Conditioning
from pgdpo.objectives import Compared
from pgdpo.reference.protocol import Comparison, Reference
from pgdpo.reference.store import MEND, ErrorRows

FRAME_AXIS = 2  # of [N, C, F, H, W], and of [N, C, L, M]


@torch.no_grad()
def frame_sums(
    pred: Latents,  # [K * B, C, F, H, W], member by member: of pairs the chosen half first
    target: Latents,
    mask: Latents | None = None,  # of the groups, as `group_errors` takes it
    *,
    size: int = 2,  # samples of a group, K
) -> torch.Tensor:
    """Sum of squared residuals per frame, float64 `[B, K, F]`; of several streams one after the other's along F.

    Sample by sample, so that the order of summation, and with it every bit, does not depend on the batch.
    """
    if isinstance(target, Mapping):
        sums = each(
            lambda goal, made, weights: frame_sums(made, goal, weights, size=size), target, pred, mask
        )
        return torch.cat([*sums.values()], dim=-1)
    groups = len(pred) // size
    weights = [None] * groups if mask is None else broadcast_mask(mask, pred, size)
    rows = [
        _frame_sum(sample, goal, weights[number % groups])
        for number, (sample, goal) in enumerate(zip(pred, target, strict=True))
    ]
    return torch.stack([torch.stack(rows[group::groups]) for group in range(groups)])


def _frame_sum(pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    squares = (pred.double() - target.double()).square()  # (C, F, H, W)
    if weight is not None:
        squares = torch.where(weight == 0, 0.0, squares * weight.double())  # what is masked out may be NaN
    return squares.movedim(FRAME_AXIS - 1, 0).flatten(1).sum(1)


def broadcast_mask(mask: torch.Tensor, pred: torch.Tensor, size: int = 2) -> torch.Tensor:
    """`[B, C | 1, F | 1, H | 1, W | 1]` of any mask that `group_errors` takes, for groups of `size` samples."""
    if mask.ndim < pred.ndim:  # frame weights, [F] or [B, F]
        mask = mask.reshape(-1, 1, mask.shape[-1], *[1] * (pred.ndim - FRAME_AXIS - 1))
    return mask.expand(len(pred) // size, *mask.shape[1:])


def mean_errors(
    pred: torch.Tensor,  # [K * B, C, F, H, W], member by member; of one stream
    target: torch.Tensor,
    mask: torch.Tensor | None = None,  # as `group_errors` takes it
    *,
    size: int = 2,
) -> torch.Tensor:
    """Mean squared error of each clip where the mask counts, float64 `[B, K]`.

    Two models' difference is their excess, exactly 0 where their predictions agree to the last bit.
    """
    clip = target[: len(target) // size]
    weights = torch.ones_like(clip) if mask is None else broadcast_mask(mask, pred, size).expand_as(clip)
    count = weights.double().flatten(1).sum(1, keepdim=True)
    return frame_sums(pred, target, mask, size=size).sum(-1) / count


def compared_with(
    sums: torch.Tensor,  # fp64 [B, K, F], the reference's `frame_sums`
    pred: Latents,  # [K * B, C, F, H, W]
    target: Latents,
    *,
    segments: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    mask: Latents | None = None,
    groups: int | None = None,
) -> Compared:
    """The predictions against a reference of which only the errors are known; its errors have no drift.

    `groups`: K of groups; None: they are pairs.

    The excess has the policy error's gradient, 2 rho_p / N, which is what it has beside a live reference.
    """
    if isinstance(target, Mapping):
        own = sums.split([goal.shape[FRAME_AXIS] for goal in target.values()], dim=-1)
        parts = each(
            lambda goal, made, sums, segments, mask: compared_with(
                sums, made, goal, segments=segments, mask=mask, groups=groups
            ),
            target, pred, dict(zip(target, own, strict=True)), segments, mask,
        )  # fmt: skip
        against = {
            key: {name: part.against[key] for name, part in parts.items()} for key in ("ref_errors", "excess")
        }
        return Compared(pred, target, against, segments, mask, groups)
    size = sums.shape[1]
    count = _over_segments(_counts(target, mask, size), segments)  # (B, 1, S)

    def mean(total: torch.Tensor) -> torch.Tensor:
        """`[B, K, F]` -> `[K * B, S]`."""
        means = _over_segments(total, segments) / count.clamp_min(1e-300)
        return torch.cat(torch.where(count > 0, means, 0.0).float().unbind(1))

    excess = frame_sums(pred, target, mask, size=size) - sums
    return Compared(pred, target, {"ref_errors": mean(sums), "excess": mean(excess)}, segments, mask, groups)


def _counts(target: torch.Tensor, mask: torch.Tensor | None, samples: int) -> torch.Tensor:
    """How many elements of each frame count, float64 `[B | 1, 1, F]`."""
    _, channels, frames, *size = target.shape
    if mask is None:
        return torch.full(
            (1, 1, frames), float(channels * math.prod(size)), dtype=torch.float64, device=target.device
        )
    weights = broadcast_mask(mask, target, samples).double()
    weights = weights.expand(-1, channels, frames, *size).movedim(FRAME_AXIS, 1)
    return weights.flatten(2).sum(2)[:, None]


def _over_segments(sums: torch.Tensor, segments: Sequence[int] | None) -> torch.Tensor:
    """`[B, K, F]` -> `[B, K, S]`."""
    if segments is None:
        return sums.sum(-1, keepdim=True)
    of_frame = torch.nn.functional.one_hot(torch.tensor(segments, device=sums.device))  # (F, S)
    return sums @ of_frame.to(sums.dtype)


class CachedErrors(Reference):
    """Rows of errors for the groups of a data set and the first draws of each."""

    def __init__(
        self, rows: ErrorRows | None, *, pair_ids: list[int], draws: int, device: torch.device
    ) -> None:
        """Raises InputError where a row is missing, saying how many."""
        done = {} if rows is None else {item: row for row, item in enumerate(rows.items())}
        wanted = len(pair_ids) * draws
        missing = [(pair, draw) for draw in range(draws) for pair in pair_ids if (pair, draw) not in done]
        if missing:
            raise InputError(
                f"train.reference is `cached`: {len(missing)} of {wanted} errors ({len(pair_ids)} pairs x "
                f"train.cached_draws {draws}) are not computed yet: {MEND}; it adds what is missing"
            )
        self._row, self._rows, self._device = done, rows, device

    def comparison(
        self, noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning, batch: dict
    ) -> Comparison:
        where = [
            self._row[item] for item in zip(batch["pair_ids"].tolist(), batch["draw"].tolist(), strict=True)
        ]
        if not torch.equal(self._rows.sigma[where], sigma[: len(where)].cpu()):
            raise InputError(
                f"the cached errors of the pairs {', '.join(batch['ids'])} are of other noise levels than this run "
                f"draws: they were written by another version; remove them and {MEND}"
            )
        # Behind those of smaller groups, and of shorter clips, stand zeros.
        frames = sum(stream.shape[FRAME_AXIS] for stream in by_stream(noisy).values())
        sums = self._rows.sums[where][:, : batch["groups"] or 2, :frames]
        return functools.partial(compared_with, sums.to(self._device))
