"""`group_errors` and `pair_errors` in eager PyTorch, differentiable by `pred`."""

from __future__ import annotations

import torch

from ..types import PairErrors


def pair_errors(
    pred: torch.Tensor,  # [2B, ...]
    target: torch.Tensor,
    ref_pred: torch.Tensor | None,
    index: tuple[int, ...] | None,  # the segment of each frame
    frame_axis: int,
    mask: torch.Tensor | None,  # fp32 [B | 1, ...] of the same rank
    cross: bool,
) -> PairErrors:
    errors = group_errors(pred, target, ref_pred, index, frame_axis, mask, None, cross)
    halves = {}
    for name in ("policy", "ref", "excess", "drift"):
        if name in errors:
            halves[f"{name}_chosen"], halves[f"{name}_rejected"] = errors[name].chunk(2)
    return PairErrors(**halves, count=errors["count"].chunk(2)[0], cross=errors.get("cross"))


def group_errors(
    pred: torch.Tensor,  # [N, ...]
    target: torch.Tensor,
    ref_pred: torch.Tensor | None,
    index: tuple[int, ...] | None,
    frame_axis: int,
    mask: torch.Tensor | None,  # fp32 [G | 1, ...] of the same rank
    groups: torch.Tensor | None,  # [N], the mask's row of each sample; None where they repeat
    cross: bool,
) -> dict[str, torch.Tensor]:
    """The fields of `GroupErrors` that there are."""
    count = 1 if index is None else max(index) + 1
    parts = []
    for segment in range(count):
        frames = None if index is None else [f for f, s in enumerate(index) if s == segment]
        parts.append(_one_segment(pred, target, ref_pred, frames, frame_axis, mask, groups, cross))
    return {name: torch.stack([part[name] for part in parts], 1) for name in parts[0]}


def _one_segment(pred, target, ref_pred, frames, frame_axis, mask, groups, cross) -> dict[str, torch.Tensor]:
    weight, total = None, None
    if mask is not None:
        weight = _rows(mask.expand(mask.shape[0], *pred.shape[1:]), frames, frame_axis)
        total = _RowSum.apply(weight)
        weight, total = (_of_samples(x, groups, pred.shape[0]) for x in (weight, total))

    def rows(x: torch.Tensor) -> torch.Tensor:
        x = _rows(x, frames, frame_axis).float()
        # Zeroed before any arithmetic, so that what is masked out may hold NaN and gets no gradient.
        return x if weight is None else torch.where(weight == 0, 0.0, x)

    policy, target = rows(pred), rows(target)
    if total is None:
        total = torch.full((pred.shape[0],), float(policy.shape[1]), device=pred.device)
    inverse = torch.where(total > 0, 1.0 / total.clamp_min(torch.finfo(torch.float32).tiny), 0.0)

    def mean(product: torch.Tensor) -> torch.Tensor:
        if weight is not None:
            product = product * weight[: product.shape[0]]
        return _RowSum.apply(product) * inverse[: product.shape[0]]

    residual = policy - target
    error = mean(residual * residual)
    out = {"policy": error}
    if ref_pred is not None:
        reference = rows(ref_pred)
        ref_residual, drift = reference - target, policy - reference
        out["ref"] = mean(ref_residual * ref_residual)
        excess = mean((drift * (residual + ref_residual)).detach())
        out["excess"] = excess + (error - error.detach())  # its gradient is the error's, 2 rho_p / N
        out["drift"] = mean(drift * drift)
    if cross:
        chosen, rejected = residual.chunk(2)
        out["cross"] = mean(chosen * rejected)
    out["count"] = total
    return out


def _of_samples(x: torch.Tensor, groups: torch.Tensor | None, samples: int) -> torch.Tensor:
    """What there is for each row of the mask, for each sample."""
    if groups is not None:
        return x.index_select(0, groups)
    return x.repeat(samples // x.shape[0], *[1] * (x.dim() - 1))


def _rows(x: torch.Tensor, frames: list[int] | None, frame_axis: int) -> torch.Tensor:
    if frames is not None:  # not by an index tensor, which would be a copy from the host
        x = torch.cat(
            [x.narrow(frame_axis, f, 1) for f in frames] or [x.narrow(frame_axis, 0, 0)], frame_axis
        )
    return x.reshape(x.shape[0], -1)


class _RowSum(torch.autograd.Function):
    """Row sums of `[R, n]` by folding halves: the same bits on every device, in any batch, on any threads."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.width = x.shape[1]
        if not ctx.width:  # a segment without frames
            return x.new_zeros(x.shape[0])
        while x.shape[1] > 1:
            half = x.shape[1] // 2
            folded = x[:, :half] + x[:, half : 2 * half]
            if x.shape[1] % 2:
                folded[:, 0] += x[:, -1]
            x = folded
        return x[:, 0].clone()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        return grad[:, None].expand(-1, ctx.width)
