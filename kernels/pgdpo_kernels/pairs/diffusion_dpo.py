"""Diffusion preference losses, straight from predictions: pair errors and loss in one op."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..backend import takes_triton
from ..checks import check_float, check_pairs
from ..launch import dense_like, launch
from ..types import PairErrors, PreferenceLoss
from .layout import Segments, mask_rows
from .pair_errors import checked_arguments, pair_errors
from .pair_launch import empty_errors, launch_gradient, launch_segment_sums, pair_rows, unpack_errors
from .preference import Preference, check_weights, loss_from_errors

OP = "diffusion_dpo_loss"


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

    The gradient flows through `.loss` alone, to `pred` alone.

    Args:
        pred, target, ref_pred, segments, mask, frame_dim: as in `pair_errors`.
        ref_errors: in place of `ref_pred`, the reference's mean squared errors from a cache, chosen half
            first: `[2B]` or `[2B, S]`.
        segments: by default as many equal segments as `segment_labels` has columns.
        beta ... safeguard_scope: as in `preference_loss`.

    Raises:
        TypeError, ValueError: as the two ops; also both or neither of `ref_pred` and `ref_errors`.
    """
    op = OP
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
    check_pairs(op, "pred", pred)
    check_reference(op, ref_pred, ref_errors)
    if segments is None and segment_labels is not None:
        segments = label_columns(op, segment_labels)
    # A scale for the whole batch must be known before the first pair's slope: not in the kernel's one sweep.
    one_sweep = preference.safeguard_mu is None or preference.safeguard_scope == "pair"
    through = _fused if one_sweep and takes_triton(op, pred) else _staged
    where = {"segments": segments, "mask": mask, "frame_dim": frame_dim}
    return through(pred, target, ref_pred, ref_errors, preference, weight, segment_labels, where)


def check_reference(op: str, ref_pred: torch.Tensor | None, ref_errors: torch.Tensor | None) -> None:
    if (ref_pred is None) == (ref_errors is None):
        given = "neither" if ref_pred is None else "both"
        raise ValueError(f"{op}: give either ref_pred or ref_errors, got {given}")
    if ref_errors is not None:
        check_float(op, "ref_errors", ref_errors)


def label_columns(op: str, labels: torch.Tensor) -> int:
    if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
        given = tuple(labels.shape) if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise ValueError(f"{op}: segment_labels must be a tensor [B, S], got {given}")
    return labels.shape[1]


def _staged(pred, target, ref_pred, ref_errors, preference, weight, labels, where) -> PreferenceLoss:
    """`pair_errors`, then the formulas in plain PyTorch."""
    errors = pair_errors(pred, target, ref_pred, cross=preference.safeguard_mu is not None, **where)
    if ref_errors is not None:
        errors = errors.with_reference(*cached_errors(OP, ref_errors, errors.policy_chosen.shape).chunk(2))
    result = loss_from_errors(OP, errors, preference, weight, labels)
    return replace(result, losses=result.losses.detach())


def _fused(pred, target, ref_pred, ref_errors, preference, weight, labels, where) -> PreferenceLoss:
    """Three launches forward, one backward."""
    target, ref_pred, index, axis, mask = checked_arguments(OP, pred, target, ref_pred, **where)
    shape = (pred.shape[0] // 2, max(index or (0,)) + 1)
    check_weights(OP, weight, labels, shape, pred.device)
    loss, per_pair, *errors, _ = _diffusion_dpo(
        pred,
        target,
        ref_pred,
        None if ref_errors is None else cached_errors(OP, ref_errors, shape),
        None if weight is None else weight.detach(),
        labels,
        mask_rows(mask, pred.shape),
        index or (),
        axis,
        *preference.kernel_arguments(),
    )
    losses, logits, chosen, rejected, alpha, gate = per_pair.detach().unbind(0)
    return PreferenceLoss(
        loss=loss,
        losses=losses,
        logits=logits,
        implicit_reward_chosen=chosen,
        implicit_reward_rejected=rejected,
        ars_alpha=alpha,
        ipr_gate=gate,
        errors=PairErrors(**unpack_errors(*errors)).detach(),
    )


def cached_errors(op: str, ref_errors: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The reference's errors as fp32 `[2B, S]`."""
    pairs, segments = shape
    if ref_errors.shape not in ((2 * pairs, segments), *([(2 * pairs,)] if segments == 1 else [])):
        raise ValueError(
            f"{op}: ref_errors must be [2B, S] = {(2 * pairs, segments)}, got shape {tuple(ref_errors.shape)}"
        )
    return ref_errors.detach().float().reshape(2 * pairs, segments).contiguous()


@torch.library.custom_op("pgdpo::diffusion_dpo", mutates_args=())
def _diffusion_dpo(
    pred: torch.Tensor,
    target: torch.Tensor,
    ref_pred: torch.Tensor | None,
    ref_errors: torch.Tensor | None,
    weight: torch.Tensor | None,
    labels: torch.Tensor | None,
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
    objective: str,
    ars: bool,
    ipr: str,
    safeguard: bool,
    numbers: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`loss` [], `per_pair` [6, B], `errors`, `drift`, `cross`, and the slopes [3, B, S] for backward."""
    from .dpo_kernel import PAIRS, PER_PAIR, preference_stage

    rows = pair_rows(pred, target, ref_pred, mask, index, frame_axis)
    sums = launch_segment_sums(rows, safeguard)
    per_pair = torch.empty(PER_PAIR, rows.pairs, device=pred.device)
    slopes = torch.empty(3, rows.pairs, rows.segments, device=pred.device)
    loss = torch.empty((), device=pred.device)
    errors = empty_errors(rows, True, ref_pred is not None, safeguard)
    launch(
        preference_stage,
        (1,),
        (sums, ref_errors, *(x if x is None else x.contiguous() for x in (weight, labels))),
        (*errors, per_pair, slopes, loss),
        (rows.pairs, rows.segments, *numbers),
        threads=PAIRS,
        OBJECTIVE=objective,
        ARS=ars,
        IPR=ipr,
        SAFEGUARD=safeguard,
        HAS_REF=ref_pred is not None,
        CACHED=ref_errors is not None,
        HAS_WEIGHT=weight is not None,
        LABELLED=labels is not None,
        PAIRS=PAIRS,
    )
    return loss, per_pair, *errors, slopes


@_diffusion_dpo.register_fake
def _(pred, target, ref_pred, ref_errors, weight, labels, mask, index, frame_axis, *preference):
    pairs, segments = pred.shape[0] // 2, max(index, default=0) + 1
    shapes = [(), (6, pairs)]
    shapes += [(size, pairs, segments) for size in (7, 0 if ref_pred is None else 2, int(preference[3]), 3)]
    return tuple(pred.new_empty(shape, dtype=torch.float32) for shape in shapes)


@torch.library.custom_op("pgdpo::diffusion_dpo_backward", mutates_args=())
def _diffusion_dpo_backward(
    grad_loss: torch.Tensor,
    slopes: torch.Tensor,
    pred: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    index: Sequence[int],
    frame_axis: int,
) -> torch.Tensor:
    rows = pair_rows(pred, target, None, mask, index, frame_axis)
    return launch_gradient(rows, pred, slopes, None, None, slopes[2], grad_loss)


@_diffusion_dpo_backward.register_fake
def _(grad_loss, slopes, pred, target, mask, index, frame_axis):
    return dense_like(pred)


def _setup(ctx, inputs, output):
    pred, target, *_ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(pred, target, inputs[6], output[-1])
    ctx.index, ctx.frame_axis = inputs[7], inputs[8]


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 14
    pred, target, mask, slopes = ctx.saved_tensors
    grad = _diffusion_dpo_backward(grad_loss, slopes, pred, target, mask, ctx.index, ctx.frame_axis)
    return (grad, *[None] * 13)


_diffusion_dpo.register_autograd(_backward, setup_context=_setup)
