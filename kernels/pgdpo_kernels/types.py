"""What the fused ops return: plain dataclasses that can also be built by hand."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch


@dataclass
class PairErrors:
    """Errors of policy and reference on `B` chosen/rejected pairs, one number per temporal segment.

    All fields are fp32 `[B, S]`. Errors are means over the segment's elements (under the mask), with the
    residuals rho_p = policy - target and rho_r = reference - target:

    * `policy_chosen`, `policy_rejected`: mean rho_p^2 on the chosen and on the rejected sample
    * `ref_chosen`, `ref_rejected`: mean rho_r^2; None without a reference
    * `excess_chosen`, `excess_rejected`: mean rho_p^2 - mean rho_r^2, accumulated as
      (policy - reference)(rho_p + rho_r), so that equal predictions give exactly 0; None without a reference
    * `drift_chosen`, `drift_rejected`: mean (policy - reference)^2; None where the reference's prediction
      is not at hand (no reference, or cached errors)
    * `cross`: mean rho_p,chosen * rho_p,rejected; None unless asked for
    * `count`: sum of the mask's weights in the segment (the number of elements without a mask)
    """

    policy_chosen: torch.Tensor
    policy_rejected: torch.Tensor
    ref_chosen: torch.Tensor | None = None
    ref_rejected: torch.Tensor | None = None
    excess_chosen: torch.Tensor | None = None
    excess_rejected: torch.Tensor | None = None
    drift_chosen: torch.Tensor | None = None
    drift_rejected: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    count: torch.Tensor | None = None

    def over_segments(self) -> PairErrors:
        """The same errors over the whole sample, `[B, 1]`: segments weighted by their counts."""
        if self.policy_chosen.shape[1] == 1:
            return self
        return _pooled(self, torch.ones_like(self.policy_chosen) if self.count is None else self.count)

    def detach(self) -> PairErrors:
        return _detached(self)


@dataclass
class GroupErrors:
    """Errors of policy and reference on the `N` samples of some groups, one number per temporal segment.

    The fields are those of `PairErrors`, fp32 `[N, S]`, a row for each sample as it was given: `policy`, `ref`,
    `excess`, `drift` and `count`. `cross` is `[B, S]` and of pairs alone, None unless asked for.
    `groups` is K where groups of K samples lie member by member, sample g of member k in row k * B + g, else the group
    of each sample.
    """

    policy: torch.Tensor
    ref: torch.Tensor | None = None
    excess: torch.Tensor | None = None
    drift: torch.Tensor | None = None
    count: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    groups: int | tuple[int, ...] = 1

    def over_segments(self) -> GroupErrors:
        """The same errors over the whole sample, `[N, 1]`: segments weighted by their counts."""
        if self.policy.shape[1] == 1:
            return self
        return _pooled(self, torch.ones_like(self.policy) if self.count is None else self.count)

    def detach(self) -> GroupErrors:
        return _detached(self)

    def pairs(self, chosen: torch.Tensor, rejected: torch.Tensor) -> PairErrors:
        """The errors of pairs of these samples, `[P, S]`, differentiable: rows `chosen` and `rejected`, integers `[P]`.

        A sample may stand in many pairs. The counts are the chosen's; `cross` is None.
        """

        def rows(name: str, index: torch.Tensor) -> torch.Tensor | None:
            value = getattr(self, name)
            return None if value is None else value.index_select(0, index)

        sides = {"chosen": chosen, "rejected": rejected}
        return PairErrors(
            count=rows("count", chosen),
            **{
                f"{name}_{side}": rows(name, index)
                for name in ("policy", "ref", "excess", "drift")
                for side, index in sides.items()
            },
        )


def _tensors(errors: PairErrors | GroupErrors) -> dict[str, torch.Tensor]:
    found = {field.name: getattr(errors, field.name) for field in fields(errors)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _pooled(errors: PairErrors | GroupErrors, count: torch.Tensor) -> PairErrors | GroupErrors:
    total = count.sum(1, keepdim=True)
    share = count / total.clamp_min(torch.finfo(torch.float32).tiny)
    means = {name: value for name, value in _tensors(errors).items() if name != "count"}
    # `cross` of a group is as long as its first member: the mask is the group's.
    pooled = {name: (x * share[: x.shape[0]]).sum(1, keepdim=True) for name, x in means.items()}
    return replace(errors, **pooled, count=total)


def _detached(errors: PairErrors | GroupErrors) -> PairErrors | GroupErrors:
    return replace(errors, **{name: value.detach() for name, value in _tensors(errors).items()})


@dataclass
class PreferenceLoss:
    """A preference loss and the numbers to log with it.

    `loss` carries a gradient, from `preference_loss` also `losses`; the rest is detached. Reduction and `loss_scale`
    are in `loss` alone. What is None with a callable objective is None, as it has no such numbers.
    """

    loss: torch.Tensor  # scalar, the mean or the sum of `losses`, or [B]; times `loss_scale`
    losses: torch.Tensor  # [B], weighted
    logits: torch.Tensor | None  # [B]
    implicit_reward_chosen: torch.Tensor | None  # [B], -excess, before beta and timestep weight
    implicit_reward_rejected: torch.Tensor | None  # [B]
    ars_alpha: torch.Tensor | None  # [B]; 1 where rejection is not scaled
    ipr_gate: torch.Tensor | None  # [B]; 0 without the regularization
    slope_chosen: torch.Tensor | None  # [B, S]: the mean of `losses` by the chosen's error of each segment
    slope_rejected: torch.Tensor | None
    errors: PairErrors
