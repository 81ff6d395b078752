"""Segments, masks and groups of samples: from what the user gives to one form that eager code and kernels share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..launch import next_power_of_2

Segments = int | Sequence[int] | torch.Tensor | None


def frame_axis(op: str, shape: Sequence[int], frame_dim: int) -> int:
    axis = frame_dim + len(shape) if frame_dim < 0 else frame_dim
    if not 1 <= axis < len(shape):
        raise ValueError(f"{op}: frame_dim {frame_dim} is no frame axis of a tensor of shape {tuple(shape)}")
    return axis


def segment_index(
    op: str, segments: Segments, shape: Sequence[int], frame_dim: int
) -> tuple[int, ...] | None:
    """The segment of each frame, None for one segment over the whole sample, however that was said.

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
        return None if segments == 1 else tuple(frame * segments // frames for frame in range(frames))
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
    return index if any(index) else None


def checked_groups(
    op: str, groups: int | Sequence[int] | torch.Tensor, samples: int
) -> int | tuple[int, ...]:
    """K, or the group of each sample. A tensor's values are read on the host, as those of segments."""
    if isinstance(groups, int) and not isinstance(groups, bool):
        if groups < 1 or samples % groups:
            raise ValueError(
                f"{op}: groups={groups} members each do not divide the {samples} samples of pred; "
                "give the group of each sample instead"
            )
        return groups
    given = f"{groups.dtype} {tuple(groups.shape)}" if isinstance(groups, torch.Tensor) else repr(groups)
    if isinstance(groups, torch.Tensor) and groups.dim() == 1:
        groups = groups.tolist()
    if not isinstance(groups, list | tuple) or not all(type(group) is int for group in groups):
        raise TypeError(f"{op}: groups must be K or the group of each sample, [N] integers, got {given}")
    if len(groups) != samples or min(groups) < 0:
        raise ValueError(
            f"{op}: groups must give one index of 0 or more for each of the {samples} samples, "
            f"got {tuple(groups)}"
        )
    return tuple(groups)


def group_mask(
    op: str, mask: torch.Tensor | None, like: torch.Tensor, shape: Sequence[int], frame_dim: int, meaning: str
) -> torch.Tensor | None:
    """The mask as fp32 with the rank of `shape` and a size of 1 wherever it is constant.

    Args:
        mask: weights of 0 or more: as many dimensions as `shape`, each 1 or that of `shape`, or frame weights
            `[F]` or `[G | 1, F]`.
        shape: `[G, ...]`, one sample of each group: what `meaning` says.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dtype.is_complex:
        raise TypeError(
            f"{op}: mask must be a real tensor, got {getattr(mask, 'dtype', type(mask).__name__)}"
        )
    if mask.device != like.device:
        raise ValueError(f"{op}: mask is on {mask.device}, pred on {like.device}")
    given = tuple(mask.shape)
    if mask.dim() < len(shape) and mask.dim() in (1, 2):
        axis = frame_axis(op, shape, frame_dim)
        frames = [1] * len(shape)
        frames[axis] = mask.shape[-1]
        frames[0] = mask.shape[0] if mask.dim() == 2 else 1
        mask = mask.reshape(frames)
    if mask.dim() != len(shape) or any(
        have not in (1, want) for have, want in zip(mask.shape, shape, strict=True)
    ):
        raise ValueError(
            f"{op}: mask must broadcast to {meaning}, {tuple(shape)}, or be frame weights [F] or "
            f"[{shape[0]}, F]; got shape {given}"
        )
    return mask.detach().float()


@dataclass(frozen=True)
class Parts:
    """How a sample is cut into parts, each within one segment. A function of its shape alone."""

    chunk: int  # elements in a part at most, a power of two
    parts: int
    longest: int  # the most parts of any segment
    align: (
        int  # 8 where every part starts and ends at a multiple of 8 elements, so that loads can be 128 bits
    )
    table: torch.Tensor | None  # int64 [3, parts]: start, size (both in units of `align`), segment
    bounds: torch.Tensor | None  # int64 [S + 1]: the parts of each segment


def cut(
    shape: torch.Size, frame_axis: int, index: tuple[int, ...] | None, align: int, device: torch.device
) -> Parts:
    """The parts of a sample of shape `shape[1:]`; `align` is what the rows' strides allow.

    Made once on each stream and kept: another stream would not wait for it. What is made while a CUDA graph is
    captured belongs to that graph.
    """
    if index is None or device.type != "cuda":
        return _kept_cut(shape, frame_axis, index, align, device)
    make = _kept_cut.__wrapped__ if torch.cuda.is_current_stream_capturing() else _kept_cut
    return make(shape, frame_axis, index, align, device, torch.cuda.current_stream(device).cuda_stream)


@functools.lru_cache(maxsize=256)
def _kept_cut(shape, frame_axis, index, align, device, stream=0) -> Parts:  # noqa: ARG001, a key
    length = math.prod(shape[1:])
    if index is None:
        chunk = chunk_size(length)
        parts = -(-length // chunk)
        return Parts(chunk, parts, parts, align, None, None)
    outer, frame = math.prod(shape[1:frame_axis]), math.prod(shape[frame_axis + 1 :])
    runs = runs_of_frames(index, frame)
    chunk = chunk_size(max(size for segment in runs for _, size in segment))
    longest = max(outer * sum(-(-size // chunk) for _, size in segment) for segment in runs)
    places = [place for segment in runs for run in segment for place in run]
    if any(place % align for place in [chunk, len(index) * frame, *places]):
        align = 1
    # Of numbers that a launch carries, and no copy from the host, so that a graph may be captured around it.
    spread = len(index) * frame * torch.arange(outer, device=device)[:, None]
    table = torch.cat(
        [segment_table(number, segment, chunk, spread) for number, segment in enumerate(runs)], dim=1
    )
    table[:2] //= align
    bounds = torch.searchsorted(table[2].contiguous(), torch.arange(len(runs) + 1, device=device))
    return Parts(chunk, table.shape[1], longest, align, table, bounds)


def runs_of_frames(index: tuple[int, ...], frame: int) -> list[list[tuple[int, int]]]:
    """(start, size) in elements of each run of neighbouring frames, by segment; `frame`: elements of one."""
    runs: list[list[tuple[int, int]]] = [[] for _ in range(max(index) + 1)]
    for segment, group in itertools.groupby(range(len(index)), key=index.__getitem__):
        frames = list(group)
        runs[segment].append((frames[0] * frame, len(frames) * frame))
    return runs


def segment_table(number: int, runs: list[tuple[int, int]], chunk: int, spread: torch.Tensor) -> torch.Tensor:
    """int64 `[3, parts]`: start, size, segment of its parts; `spread` [outer, 1]: where the frames begin again."""
    starts, sizes = [], []
    for begin, size in runs:
        start = torch.arange(begin, begin + size, chunk, device=spread.device)
        starts.append(start)
        sizes.append((begin + size - start).clamp_max(chunk))
    if not runs:  # a segment without frames
        return spread.new_empty(3, 0)
    start, size = torch.cat(starts) + spread, torch.cat(sizes) + 0 * spread
    return torch.stack((start, size, torch.full_like(start, number))).flatten(1)


def chunk_size(length: int) -> int:
    """About 512 parts a sample, which fill a GPU with one pair, and no more than 16 turns a part."""
    return min(max(next_power_of_2(-(-length // 512)), 2048), 16384)


def mask_groups(
    groups: int | tuple[int, ...], mask: torch.Tensor | None, members: int, device: torch.device, samples: int
) -> torch.Tensor | None:
    """int64 `[N]`, the mask's row of each sample, where a program of `members` rows can't tell from its number."""
    if mask is None or mask.shape[0] == 1 or groups == members:
        return None
    if isinstance(groups, int):
        return torch.arange(samples // groups, device=device).repeat(groups)
    return integers(groups, device)


def integers(numbers: Sequence, device: torch.device) -> torch.Tensor:
    """int64 on the device, without waiting for it."""
    cuda = device.type == "cuda"
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=cuda).to(device, non_blocking=True)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """`[N, n]` with unit stride within a row: a view where the samples are contiguous, else a copy."""
    x = x.reshape(x.shape[0], -1)
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()


def mask_rows(mask: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    """`group_mask`'s result as contiguous `[G | 1, m]` that repeats along a sample of shape `shape[1:]`."""
    if mask is None:
        return None
    first = next((axis for axis in range(1, mask.dim()) if mask.shape[axis] != 1), mask.dim())
    whole = [mask.shape[0], *[1] * (first - 1), *shape[first:]]
    return mask.expand(whole).reshape(mask.shape[0], -1).contiguous()
