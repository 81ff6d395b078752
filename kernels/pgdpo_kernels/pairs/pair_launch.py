"""The launches under `pair_errors` and `diffusion_dpo_loss`, and what both need to prepare them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..backend import interpreting
from ..launch import dense_like, launch, next_power_of_2
from .layout import Parts, cut, rows_of


@dataclass(frozen=True)
class PairRows:
    """Policy, target and reference as rows, their mask, and how the rows are cut into parts."""

    pred: torch.Tensor  # [2B, n]
    target: torch.Tensor
    ref: torch.Tensor | None
    mask: torch.Tensor | None  # fp32 [B | 1, m]
    cut: Parts
    segments: int

    @property
    def pairs(self) -> int:
        return self.pred.shape[0] // 2

    def inputs(self) -> tuple[torch.Tensor | None, ...]:
        """The tensors that both passes read."""
        return self.pred, self.target, self.ref, self.mask, self.cut.table

    def strides(self) -> tuple[int, ...]:
        ref = self.pred if self.ref is None else self.ref
        rows = (self.pred.stride(0), self.target.stride(0), ref.stride(0), self.pred.shape[1])
        return tuple(stride // self.cut.align for stride in rows)

    def mask_strides(self) -> tuple[int, int]:
        if self.mask is None:
            return 0, 1
        return (self.mask.shape[1] if self.mask.shape[0] > 1 else 0), self.mask.shape[1]

    def options(self) -> dict:
        from .pair_kernels import BLOCK, THREADS

        return {
            "HAS_MASK": self.mask is not None,
            "SHORT_MASK": self.mask is not None and self.mask.shape[1] < self.cut.chunk,
            "HAS_TABLE": self.cut.table is not None,
            "ALIGN": self.cut.align,
            "CHUNK": self.cut.chunk,
            "BLOCK": BLOCK,
            "threads": THREADS,
        }

    def tile(self) -> dict:
        """The second stage's tile: wide enough for a segment's parts, tall enough to fill it."""
        from .pair_kernels import TILE, TILE_REGISTERS, TILE_THREADS

        parts = min(max(next_power_of_2(self.cut.longest), 16), TILE)
        return {
            **({} if torch.version.hip else {"maxnreg": TILE_REGISTERS}),
            "HAS_TABLE": self.cut.table is not None,
            "PAIRS": TILE // parts,
            "PARTS": parts,
            "threads": TILE_THREADS,
        }


def pair_rows(
    pred: torch.Tensor,
    target: torch.Tensor,
    ref: torch.Tensor | None,
    mask: torch.Tensor | None,
    index: list[int],
    frame_axis: int,
) -> PairRows:
    rows = [None if x is None else rows_of(x) for x in (pred, target, ref)]
    strides = [pred[0].numel(), *(x.stride(0) for x in rows if x is not None)]
    align = 8 if all(stride % 8 == 0 for stride in strides) else 1
    parts = cut(pred.shape, frame_axis, tuple(index) or None, align, pred.device)
    return PairRows(*rows, mask, parts, max(index, default=0) + 1)


def launch_sums(rows: PairRows, cross: bool) -> torch.Tensor:
    """Partial sums, fp32 `[10, B, parts]`."""
    from .pair_kernels import QUANTITIES, partial_sums

    parts = rows.cut.parts
    partials = torch.empty(QUANTITIES, rows.pairs, parts, device=rows.pred.device)
    grid, numbers = (rows.pairs * parts,), (*rows.strides(), rows.pairs, parts, *rows.mask_strides())
    switches = {"HAS_REF": rows.ref is not None, "CROSS": cross}
    launch(partial_sums, grid, rows.inputs(), (partials,), numbers, **switches, **rows.options())
    return partials


def launch_means(rows: PairRows, cross: bool) -> tuple[torch.Tensor, ...]:
    """The errors of each pair's segments, as `empty_errors` lays them out: a program has one segment of some pairs."""
    from .pair_kernels import pair_means

    has_ref = rows.ref is not None
    errors = empty_errors(rows, has_ref, cross)
    tensors, tile = (launch_sums(rows, cross), rows.cut.bounds), rows.tile()
    grid = (-(-rows.pairs // tile["PAIRS"]) * rows.segments,)
    numbers = (rows.pairs, rows.cut.parts, rows.segments)
    launch(pair_means, grid, tensors, errors, numbers, HAS_REF=has_ref, CROSS=cross, **tile)
    return errors


def launch_gradient(
    rows: PairRows,
    like: torch.Tensor,
    slopes: torch.Tensor,
    drift_slopes: torch.Tensor | None,
    cross_slopes: torch.Tensor | None,
    count: torch.Tensor,
    grad_loss: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient by `pred`, contiguous, in its dtype and the shape of `like`."""
    from .pair_kernels import pair_gradient

    out = dense_like(like)
    sizes = (rows.pairs, rows.cut.parts, rows.segments)
    launch(
        pair_gradient,
        (rows.pairs * rows.cut.parts,),
        (*rows.inputs(), grad_loss, weight, slopes, drift_slopes, cross_slopes, count),
        (out,),
        (*rows.strides(), *sizes, *rows.mask_strides()),
        FUSED=grad_loss is not None,
        HAS_WEIGHT=weight is not None,
        HAS_REF=slopes.shape[0] > 3,
        DRIFT=drift_slopes is not None,
        CROSS=cross_slopes is not None,
        fp_fusion=False,  # slopes times the gradient from above are rounded as autograd does it between two ops
        EMULATE_BF16=interpreting(),
        **rows.options(),
    )
    return out


def empty_errors(rows: PairRows, has_ref: bool, cross: bool) -> tuple[torch.Tensor, ...]:
    """What the second stage writes: `errors` [3 or 7, B, S], `drift` [2 or 0, ...], `cross` [1 or 0, ...]."""
    sizes = (7 if has_ref else 3, 2 if has_ref else 0, 1 if cross else 0)
    device = rows.pred.device
    return tuple(torch.empty(size, rows.pairs, rows.segments, device=device) for size in sizes)


def unpack_errors(errors: torch.Tensor, drift: torch.Tensor, cross: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields of `PairErrors` by name."""
    names = ("policy_chosen", "policy_rejected", "count", "excess_chosen", "excess_rejected", "ref_chosen")
    fields = dict(zip((*names, "ref_rejected"), errors.unbind(0), strict=False))
    fields |= dict(zip(("drift_chosen", "drift_rejected"), drift.unbind(0), strict=False))
    return fields | dict(zip(("cross",), cross.unbind(0), strict=False))
