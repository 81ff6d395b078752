"""A micro-batch's predictions and what they are compared with, before errors are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pgdpo_kernels import GroupErrors, PairErrors, PreferenceLoss

    Streams = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Compared:
    """Two ways on: `errors`, for any objective; `loss`, of pairs, for those whose formula `diffusion_dpo_loss` has.

    Of a model of several streams predictions, targets, what they are compared with, segments and masks are mappings of
    their names; a mask that is not there is none.
    """

    pred: Streams  # [K * B, ...], member by member: of pairs the chosen half first
    target: Streams
    # `ref_pred`, or `ref_errors` and `excess`, or nothing: keywords of `group_errors`
    against: Mapping[str, Streams]
    # The temporal segment of each latent frame
    segments: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    mask: Streams | None = None
    groups: int | None = None  # K; None: they are pairs

    @property
    def shape(self) -> tuple[int, int]:
        """Groups and segments, (B, S)."""
        return len(self.pred) // (self.groups or 2), 1 if self.segments is None else max(self.segments) + 1

    def errors(
        self, *, cross: bool = False
    ) -> PairErrors | GroupErrors | dict[str, PairErrors | GroupErrors]:
        """Each differentiable by `pred`; `cross`: of pairs. Of several streams those of each."""
        if isinstance(self.pred, Mapping):
            return {name: self._stream(name).errors(cross=cross) for name in self.target}
        if self.groups is not None:
            from pgdpo_kernels import group_errors

            return group_errors(self.pred, self.target, groups=self.groups, **self._where)
        from pgdpo_kernels import pair_errors

        return pair_errors(self.pred, self.target, **self._where, cross=cross)

    def loss(self, **options: Tensor | float | str | None) -> PreferenceLoss:
        """Three launches forward, one backward; its errors and numbers are without gradient."""
        from pgdpo_kernels import diffusion_dpo_loss

        return diffusion_dpo_loss(self.pred, self.target, **self._where, **options)

    def _stream(self, name: str) -> Compared:
        def of(value: Any) -> Any:
            return value.get(name) if isinstance(value, Mapping) else value

        against = {key: of(value) for key, value in self.against.items()}
        return Compared(
            of(self.pred), of(self.target), against, of(self.segments), of(self.mask), self.groups
        )

    @property
    def _where(self) -> dict[str, Any]:
        return {**self.against, "segments": self.segments, "mask": self.mask}
