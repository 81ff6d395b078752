"""Segments and masks: from what the user gives to one form that eager code and kernels share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Segments = int | Sequence[int] | torch.Tensor | None


def frame_axis(op: str, shape: torch.Size, frame_dim: int) -> int:
    axis = frame_dim + len(shape) if frame_dim < 0 else frame_dim
    if not 1 <= axis < len(shape):
        raise ValueError(f"{op}: frame_dim {frame_dim} is no frame axis of a tensor of shape {tuple(shape)}")
    return axis


def segment_index(op: str, segments: Segments, shape: torch.Size, frame_dim: int) -> tuple[int, ...] | None:
    """The segment of each frame, None for one segment over the whole sample.

    A tensor's values are read on the host: give it on the CPU, or as a sequence, to spare a synchronisation.
    """
    if segments is None:
        return None
    frames = shape[frame_axis(op, shape, frame_dim)]
    if isinstance(segments, bool):
        raise TypeError(f"{op}: segments must be a number of segments or an index per frame, got a bool")
    if isinstance(segments, int):
        if segments < 1 or frames % segments:
            raise ValueError(
                f"{op}: segments={segments} does not divide the {frames} frames into equal segments; "
                "give the segment of each frame instead"
            )
        return tuple(frame * segments // frames for frame in range(frames))
    if isinstance(segments, torch.Tensor):
        if segments.dtype.is_floating_point or segments.dtype.is_complex or segments.dtype == torch.bool:
            raise TypeError(f"{op}: segments must be an integer tensor, got {segments.dtype}")
        if segments.dim() != 1:
            raise ValueError(f"{op}: segments must be [F] = [{frames}], got shape {tuple(segments.shape)}")
        segments = segments.tolist()
    index = tuple(int(segment) for segment in segments)
    if len(index) != frames or min(index) < 0:
        raise ValueError(
            f"{op}: segments must give one index of 0 or more for each of the {frames} frames, got {index}"
        )
    return index


def pair_mask(op: str, mask: torch.Tensor | None, like: torch.Tensor, frame_dim: int) -> torch.Tensor | None:
    """The mask as fp32 with the rank of `like` and a size of 1 wherever it is constant, B pairs at most.

    Args:
        mask: weights of 0 or more: as many dimensions as `like`, each 1 or that of one half of `like`
            (`[B | 1, ...]`), or frame weights `[F]` or `[B | 1, F]`.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dtype.is_complex:
        raise TypeError(
            f"{op}: mask must be a real tensor, got {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    if mask.device != like.device:
        raise ValueError(f"{op}: mask is on {mask.device}, pred on {like.device}")
    shape, given = [like.shape[0] // 2, *like.shape[1:]], tuple(mask.shape)
    if mask.dim() < like.dim() and mask.dim() in (1, 2):
        axis = frame_axis(op, like.shape, frame_dim)
        frames = [1] * like.dim()
        frames[axis] = mask.shape[-1]
        frames[0] = mask.shape[0] if mask.dim() == 2 else 1
        mask = mask.reshape(frames)
    if mask.dim() != like.dim() or any(
        have not in (1, want) for have, want in zip(mask.shape, shape, strict=True)
    ):
        raise ValueError(
            f"{op}: mask must broadcast to one half of pred, {tuple(shape)}, or be frame weights [F] or "
            f"[B, F]; got shape {given}"
        )
    return mask.detach().float()
