"""A micro-batch's predictions and what they are compared with, before errors are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo_kernels import PairErrors, PreferenceLoss


@dataclass(frozen=True)
class Compared:
    """Two ways on: `errors`, for any objective, and `loss`, for those whose formula `diffusion_dpo_loss` has."""

    pred: Tensor  # [2B, ...], chosen half first
    target: Tensor
    against: Mapping[
        str, Tensor
    ]  # `ref_pred`, or `ref_errors` and `excess`, or nothing: keywords of `pair_errors`
    segments: Sequence[int] | None = None  # the temporal segment of each latent frame
    mask: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Pairs and segments, (B, S)."""
        return len(self.pred) // 2, 1 if self.segments is None else max(self.segments) + 1

    def errors(self, *, cross: bool = False) -> PairErrors:
        """Each differentiable by `pred`."""
        from pgdpo_kernels import pair_errors

        return pair_errors(self.pred, self.target, **self._where, cross=cross)

    def loss(self, **options: Tensor | float | str | None) -> PreferenceLoss:
        """Three launches forward, one backward; its errors and numbers are without gradient."""
        from pgdpo_kernels import diffusion_dpo_loss

        return diffusion_dpo_loss(self.pred, self.target, **self._where, **options)

    @property
    def _where(self) -> dict[str, Any]:
        return {**self.against, "segments": self.segments, "mask": self.mask}
