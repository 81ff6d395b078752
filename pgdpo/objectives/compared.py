"""A micro-batch's predictions and what they are compared with, before errors are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo_kernels import GroupErrors, PairErrors, PreferenceLoss


@dataclass(frozen=True)
class Compared:
    """Two ways on: `errors`, for any objective; `loss`, of pairs, for those whose formula `diffusion_dpo_loss` has."""

    pred: Tensor  # [K * B, ...], member by member: of pairs the chosen half first
    target: Tensor
    against: Mapping[
        str, Tensor
    ]  # `ref_pred`, or `ref_errors` and `excess`, or nothing: keywords of `group_errors`
    segments: Sequence[int] | None = None  # the temporal segment of each latent frame
    mask: Tensor | None = None
    groups: int | None = None  # K; None: they are pairs

    @property
    def shape(self) -> tuple[int, int]:
        """Groups and segments, (B, S)."""
        return len(self.pred) // (self.groups or 2), 1 if self.segments is None else max(self.segments) + 1

    def errors(self, *, cross: bool = False) -> PairErrors | GroupErrors:
        """Each differentiable by `pred`; `cross`: of pairs."""
        from pgdpo_kernels import group_errors, pair_errors

        if self.groups is not None:
            return group_errors(self.pred, self.target, groups=self.groups, **self._where)
        return pair_errors(self.pred, self.target, **self._where, cross=cross)

    def loss(self, **options: Tensor | float | str | None) -> PreferenceLoss:
        """Three launches forward, one backward; its errors and numbers are without gradient."""
        from pgdpo_kernels import diffusion_dpo_loss

        return diffusion_dpo_loss(self.pred, self.target, **self._where, **options)

    @property
    def _where(self) -> dict[str, Any]:
        return {**self.against, "segments": self.segments, "mask": self.mask}
