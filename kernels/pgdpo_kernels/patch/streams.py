"""Blocks of two streams, an image's or a clip's and the text's, that differ between families in names alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .replace import Ops, promoted


class Stream(NamedTuple):
    """One stream as it enters a block."""

    hidden: torch.Tensor  # [B, N, D]
    vectors: tuple[torch.Tensor, ...]  # shift, scale and gate of attention, then of feed-forward; [B, D] each
    eps: tuple[float, float]  # of the LayerNorms before attention and before feed-forward


def two_streams(
    ops: Ops, image: Stream, text: Stream, attention: Callable, feed_forward: Callable
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both halves of a block, each stream with LayerNorms and vectors of its own.

    Args:
        attention, feed_forward: take the modulated norms of image and text, give a branch for each.

    Returns:
        The hidden states of image and text, in the dtypes that diffusers' code would give them.
    """
    streams = (image, text)
    hidden = [promoted(stream.hidden, stream.vectors[2]) for stream in streams]
    normed = [
        ops.norm_modulate(x, stream.vectors[1], stream.vectors[0], eps=stream.eps[0])
        for x, stream in zip(hidden, streams, strict=True)
    ]
    branches, halfway = attention(*normed), []
    for x, branch, stream in zip(hidden, branches, streams, strict=True):
        _, _, gate, shift, scale, _ = stream.vectors
        halfway.append(ops.gate_residual_norm_modulate(x, branch, gate, scale, shift, eps=stream.eps[1]))
    branches = feed_forward(*(normed for _, normed in halfway))
    image_hidden, text_hidden = (
        ops.gate_residual(x, branch, stream.vectors[5])
        for (x, _), branch, stream in zip(halfway, branches, streams, strict=True)
    )
    return image_hidden, text_hidden
