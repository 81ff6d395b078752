"""Diffusion preference losses, straight from predictions: pair errors and loss in one op."""

from __future__ import annotations

import torch

from .checks import check_float
from .layout import Segments
from .pair_errors import pair_errors
from .preference import Preference, check_labels, loss_from_errors
from .types import PreferenceLoss


def diffusion_dpo_loss(
    pred: torch.Tensor,  # [2B, ...], chosen half first
    target: torch.Tensor,
    ref_pred: torch.Tensor | None = None,
    *,
    ref_errors: torch.Tensor | None = None,
    beta: float,
    objective: str = "pg_dpo",
    label_smoothing: float = 0.0,
    weight: torch.Tensor | None = None,
    segments: Segments = None,
    segment_labels: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    ars_k: float | None = 1.0,
    ars_eps: float = 1e-6,
    ars_clip: float = 10.0,
    ipr_weight: float = 1.0,
    ipr_sharpness: float = 1.0,
    ipr_threshold: float = 1.0,
    ipr_form: str = "bt",
    safeguard_mu: float | None = None,
    safeguard_scope: str = "pair",
    frame_dim: int = 2,
) -> PreferenceLoss:
    """`pair_errors` and `preference_loss` in one op: see there for the formulas and the arguments.

    Args:
        pred, target, ref_pred, segments, mask, frame_dim: as in `pair_errors`.
        ref_errors: in place of `ref_pred`, the reference's mean squared errors from a cache, chosen half
            first: `[2B]` or `[2B, S]`.
        segments: by default as many equal segments as `segment_labels` has columns.
        beta ... safeguard_scope: as in `preference_loss`.

    Raises:
        TypeError, ValueError: as the two ops; also both or neither of `ref_pred` and `ref_errors`.
    """
    op = "diffusion_dpo_loss"
    preference = Preference(
        beta=beta,
        objective=objective,
        label_smoothing=label_smoothing,
        ars_k=ars_k,
        ars_eps=ars_eps,
        ars_clip=ars_clip,
        ipr_weight=ipr_weight,
        ipr_sharpness=ipr_sharpness,
        ipr_threshold=ipr_threshold,
        ipr_form=ipr_form,
        safeguard_mu=safeguard_mu,
        safeguard_scope=safeguard_scope,
    ).check(op)
    if (ref_pred is None) == (ref_errors is None):
        given = "neither" if ref_pred is None else "both"
        raise ValueError(f"{op}: give either ref_pred or ref_errors, got {given}")
    if segments is None and segment_labels is not None:
        check_labels(op, segment_labels, (pred.shape[0] // 2, *segment_labels.shape[1:2]))
        segments = segment_labels.shape[1]
    cross = preference.safeguard_mu is not None
    errors = pair_errors(
        pred, target, ref_pred, segments=segments, mask=mask, cross=cross, frame_dim=frame_dim
    )
    if ref_errors is not None:
        errors = errors.with_reference(*_cached(op, ref_errors, errors.policy_chosen))
    return loss_from_errors(op, errors, preference, weight, segment_labels)


def _cached(op: str, ref_errors: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    check_float(op, "ref_errors", ref_errors)
    pairs, segments = like.shape
    if ref_errors.shape not in ((2 * pairs, segments), *([(2 * pairs,)] if segments == 1 else [])):
        raise ValueError(
            f"{op}: ref_errors must be [2B, S] = {(2 * pairs, segments)}, got shape {tuple(ref_errors.shape)}"
        )
    return ref_errors.detach().float().reshape(2 * pairs, segments).chunk(2)
