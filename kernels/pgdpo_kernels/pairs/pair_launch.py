"""The launches under `pair_errors`, `group_errors` and `diffusion_dpo_loss`, and what both need to prepare them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..backend import interpreting
from ..launch import launch, next_power_of_2
from .layout import Parts, cut, integers, rows_of


@dataclass(frozen=True)
class PairRows:
    """Policy, target and reference as rows, their mask, and how the rows are cut into parts."""

    pred: torch.Tensor  # [N, n]; the first tensor of several, `addresses` has the others' too
    target: torch.Tensor
    ref: torch.Tensor | None
    mask: torch.Tensor | None  # fp32 [G | 1, m]
    groups: (
        torch.Tensor | None
    )  # int64 [N], the mask's row of each sample, where that isn't a program's number
    cut: Parts
    segments: int
    members: int  # rows that a program reads
    pairs: int  # B = N / members
    addresses: torch.Tensor | None = None  # int64 [3, N], of the rows of several tensors
    kept: Sequence[Sequence[torch.Tensor]] = ()  # what lies there

    def inputs(self) -> tuple[torch.Tensor | None, ...]:
        """The tensors that both passes read."""
        return self.pred, self.target, self.ref, self.addresses, self.mask, self.groups, self.cut.table

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
            "MEMBERS": self.members,
            "SEPARATE": self.addresses is not None,
            "HAS_MASK": self.mask is not None,
            "HAS_GROUPS": self.groups is not None,
            "SHORT_MASK": self.mask is not None and self.mask.shape[1] < self.cut.chunk,
            "HAS_TABLE": self.cut.table is not None,
            "ALIGN": self.cut.align,
            "CHUNK": self.cut.chunk,
            "BLOCK": BLOCK,
            "threads": THREADS,
        }

    def tile(self) -> dict:
        """The second stage's tile: wide enough for a segment's parts, tall enough to fill it."""
        from .pair_means_kernel import TILE, TILE_REGISTERS, TILE_THREADS

        parts = min(max(next_power_of_2(self.cut.longest), 16), TILE)
        return {
            **({} if torch.version.hip else {"maxnreg": TILE_REGISTERS}),
            "MEMBERS": self.members,
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
    groups: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    members: int,
) -> PairRows:
    """Of stacked samples `[N, ...]`."""
    rows = [None if x is None else rows_of(x) for x in (pred, target, ref)]
    strides = [pred[0].numel(), *(x.stride(0) for x in rows if x is not None)]
    align = 8 if all(stride % 8 == 0 for stride in strides) else 1
    parts = cut(pred.shape, frame_axis, tuple(index) or None, align, pred.device)
    segments = max(index, default=0) + 1
    return PairRows(*rows, mask, groups, parts, segments, members, pred.shape[0] // members)


def separate_rows(
    pred: Sequence[torch.Tensor],
    target: Sequence[torch.Tensor],
    ref: Sequence[torch.Tensor],
    mask: torch.Tensor | None,
    groups: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    members: int,
    stacks: bool,
) -> PairRows:
    """Of samples in several tensors: one `[...]` each, or `stacks` `[n, ...]`; `ref` is empty without a reference."""
    wide = 8 if pred[0].numel() % 8 == 0 else 1
    kept = [
        [rows_of(x) if stacks else own_row(x, wide)[None] for x in tensors] for tensors in (pred, target, ref)
    ]
    addresses = [[place for x in rows for place in addresses_of(x)] for rows in kept if rows]
    length, samples, device = kept[0][0].shape[1], len(addresses[0]), pred[0].device
    # A stack that a wide load would miss is read element by element: a copy would be of many samples.
    align = 1 if length % 8 or any(place % 16 for rows in addresses for place in rows) else 8
    shape = torch.Size((samples, *pred[0].shape[stacks:]))
    parts = cut(shape, frame_axis, tuple(index) or None, align, device)
    return PairRows(
        *(rows[0] if rows else None for rows in kept),
        mask,
        groups,
        parts,
        max(index, default=0) + 1,
        members,
        samples // members,
        integers(addresses, device),
        kept,
    )


def addresses_of(rows: torch.Tensor) -> list[int]:
    step = rows.stride(0) * rows.element_size()
    return [rows.data_ptr() + row * step for row in range(len(rows))]


def own_row(x: torch.Tensor, align: int) -> torch.Tensor:
    """`[n]`: a view where the sample is contiguous and can be read as wide as in a stack, else a copy."""
    x = x.detach().reshape(-1).contiguous()
    return x.clone() if align > 1 and x.data_ptr() % 16 else x


def launch_sums(rows: PairRows, cross: bool, members: int) -> torch.Tensor:
    """Partial sums, fp32 `[5 * rows.members, B, parts]`, by programs that read `members` rows."""
    from .pair_kernels import partial_sums

    parts, pairs = rows.cut.parts, rows.pairs * rows.members // members
    partials = torch.empty(5 * rows.members, rows.pairs, parts, device=rows.pred.device)
    grid, numbers = (pairs * parts,), (*rows.strides(), pairs, parts, *rows.mask_strides())
    switches = {"HAS_REF": rows.ref is not None, "CROSS": cross}
    options = rows.options() | {"MEMBERS": members}
    launch(partial_sums, grid, rows.inputs(), (partials,), numbers, **switches, **options)
    return partials


def launch_means(rows: PairRows, cross: bool) -> tuple[torch.Tensor, ...]:
    """The errors of each pair's segments, as `empty_errors` lays them out: a program has one segment of some pairs."""
    from .pair_means_kernel import pair_means

    has_ref = rows.ref is not None
    errors = empty_errors(rows, has_ref, cross)
    # Two rows together hold twice the registers: only where something is read once, or is of both.
    members = rows.members if cross or rows.mask is not None else 1
    tensors, tile = (launch_sums(rows, cross, members), rows.cut.bounds), rows.tile()
    grid = (-(-rows.pairs // tile["PAIRS"]) * rows.segments,)
    numbers = (rows.pairs, rows.cut.parts, rows.segments)
    launch(
        pair_means,
        grid,
        tensors,
        errors,
        numbers,
        HAS_REF=has_ref,
        CROSS=cross,
        COUNTS=rows.members // members,
        **tile,
    )
    return errors


def launch_gradient(
    rows: PairRows,
    out: torch.Tensor,
    slopes: torch.Tensor,
    drift_slopes: torch.Tensor | None,
    cross_slopes: torch.Tensor | None,
    count: torch.Tensor,
    grad_loss: torch.Tensor | None,
    weight: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient by `pred`, into `out`: `[N, ...]`, contiguous."""
    from .pair_kernels import pair_gradient

    sizes = (rows.pairs, rows.cut.parts, rows.segments)
    launch(
        pair_gradient,
        (rows.pairs * rows.cut.parts,),
        (*rows.inputs(), grad_loss, weight, slopes, drift_slopes, cross_slopes, count),
        (out,),
        (*rows.strides(), *sizes, *rows.mask_strides()),
        FUSED=grad_loss is not None,
        HAS_WEIGHT=weight is not None,
        HAS_REF=slopes.shape[0] > rows.members + 1,
        DRIFT=drift_slopes is not None,
        CROSS=cross_slopes is not None,
        fp_fusion=False,  # slopes times the gradient from above are rounded as autograd does it between two ops
        EMULATE_BF16=interpreting(),
        **rows.options(),
    )
    return out


def empty_errors(rows: PairRows, has_ref: bool, cross: bool) -> tuple[torch.Tensor, ...]:
    """What the second stage writes, see `sizes_of_errors`."""
    device, sizes = rows.pred.device, sizes_of_errors(rows.members, has_ref, cross)
    return tuple(torch.empty(size, rows.pairs, rows.segments, device=device) for size in sizes)


def sizes_of_errors(members: int, has_ref: bool, cross: bool) -> tuple[int, int, int]:
    """The first sizes of `errors`, `drift` and `cross`, each `[..., B, S]`.

    `errors` holds of each member the policy's error, then the count, then of each member the excess and the
    reference's error.
    """
    return (3 * members + 1, members, int(cross)) if has_ref else (members + 1, 0, int(cross))


def unpack_errors(errors: torch.Tensor, drift: torch.Tensor, cross: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields of `PairErrors` by name."""
    names = ("policy_chosen", "policy_rejected", "count", "excess_chosen", "excess_rejected", "ref_chosen")
    fields = dict(zip((*names, "ref_rejected"), errors.unbind(0), strict=False))
    fields |= dict(zip(("drift_chosen", "drift_rejected"), drift.unbind(0), strict=False))
    return fields | dict(zip(("cross",), cross.unbind(0), strict=False))


def unpack_groups(
    errors: torch.Tensor, drift: torch.Tensor, cross: torch.Tensor, members: int
) -> dict[str, torch.Tensor]:
    """The fields of `GroupErrors` by name, samples member by member."""
    has_ref = errors.shape[0] > members + 1
    policy, count, *against = errors.split([members, 1, *[members, members] * has_ref])
    fields = {"policy": policy, "count": count.expand(members, -1, -1)}
    fields |= dict(zip(("excess", "ref", "drift"), (*against, drift), strict=False)) if against else {}
    fields = {name: x.flatten(0, 1) for name, x in fields.items()}
    return fields | dict(zip(("cross",), cross.unbind(0), strict=False))
