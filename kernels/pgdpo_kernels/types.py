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
