"""What the fused ops return: plain dataclasses that can also be built by hand."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
        count = torch.ones_like(self.policy_chosen) if self.count is None else self.count
        total = count.sum(1, keepdim=True)
        share = count / total.clamp_min(torch.finfo(torch.float32).tiny)

        def pool(name: str) -> torch.Tensor | None:
            value = getattr(self, name)
            return None if value is None else (value * share).sum(1, keepdim=True)

        pooled = {field.name: pool(field.name) for field in fields(self) if field.name != "count"}
        return PairErrors(**pooled, count=total)

    def detach(self) -> PairErrors:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PairErrors(**{name: None if v is None else v.detach() for name, v in values.items()})


@dataclass
class GroupErrors:
    """Errors of policy and reference on `N` samples of groups, one number per temporal segment.

    A group's samples share prompt, timestep and noise. Fields are fp32 `[N, S]`, as those of `PairErrors`: means over
    the segment's elements under the group's mask. `groups` says which samples belong together: a number K, member by
    member (sample k of group g is row k * B + g, N = K * B), or the group of each sample, `[N]`.

    * `policy`, `ref`: mean squared residual; `ref` None without a reference
    * `excess`: policy's less reference's, exactly 0 where the predictions are equal
    * `drift`: mean (policy - reference)^2; None where the reference's prediction is not at hand
    * `cross`: of groups of two, `[B, S]`, mean product of their residuals; None unless asked for
    * `count`: sum of the mask's weights in the segment
    """

    policy: torch.Tensor
    ref: torch.Tensor | None = None
    excess: torch.Tensor | None = None
    drift: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    count: torch.Tensor | None = None
    groups: int | torch.Tensor = 2

    def over_segments(self) -> GroupErrors:
        """The same errors over the whole sample, `[N, 1]`: segments weighted by their counts."""
        if self.policy.shape[1] == 1:
            return self
        count = torch.ones_like(self.policy) if self.count is None else self.count
        total = count.sum(1, keepdim=True)
        share = count / total.clamp_min(torch.finfo(torch.float32).tiny)

        def pool(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else (value * share[: len(value)]).sum(1, keepdim=True)

        parts = {name: pool(getattr(self, name)) for name in ("policy", "ref", "excess", "drift", "cross")}
        return GroupErrors(**parts, count=total, groups=self.groups)

    def detach(self) -> GroupErrors:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
        return GroupErrors(**values)

    def pairs(self, chosen: torch.Tensor, rejected: torch.Tensor) -> PairErrors:
        """The errors of pairs of these samples, given by their rows `[P]`; differentiable, without `cross`."""
        found = {"count": None if self.count is None else self.count[chosen]}
        for name in ("policy", "ref", "excess", "drift"):
            value = getattr(self, name)
            for side, rows in (("chosen", chosen), ("rejected", rejected)):
                found[f"{name}_{side}"] = None if value is None else value.index_select(0, rows)
        return PairErrors(**found)


@dataclass
class PreferenceLoss:
    """A preference loss and the numbers to log with it.

    `loss` carries a gradient, from `preference_loss` also `losses`; the rest is detached.
    """

    loss: torch.Tensor  # scalar: the mean of `losses`
    losses: torch.Tensor  # [B], weighted
    logits: torch.Tensor  # [B]
    implicit_reward_chosen: torch.Tensor  # [B], -excess, before beta and timestep weight
    implicit_reward_rejected: torch.Tensor  # [B]
    ars_alpha: torch.Tensor  # [B]; 1 where rejection is not scaled
    ipr_gate: torch.Tensor  # [B]; 0 without the regularization
    slope_chosen: torch.Tensor  # [B, S]: the loss by the chosen's error of each segment
    slope_rejected: torch.Tensor
    errors: PairErrors
