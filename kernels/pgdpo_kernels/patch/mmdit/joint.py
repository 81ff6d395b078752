"""What a stream of a block does, before attention and after it, and the attention of two streams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, promoted

Six = tuple[torch.Tensor, ...]  # shift, scale and gate of the attention, then of the feed-forward
Projections = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value, `[B, N, D]` each
Tables = tuple[torch.Tensor, torch.Tensor] | None


def enter(
    ops: Ops, hidden_states: torch.Tensor, modulation: Six, norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream, and its modulated norm for the attention.

    Args:
        modulation: shift, scale and gate, and what may follow.
        norm: a LayerNorm without weights, or one of diffusers' adaptive norms around it.
    """
    shift, scale, gate = modulation[:3]
    hidden_states = promoted(hidden_states, gate)
    return hidden_states, ops.norm_modulate(hidden_states, scale, shift, eps=getattr(norm, "norm", norm).eps)


def leave(
    ops: Ops,
    hidden_states: torch.Tensor,
    branch: torch.Tensor,
    modulation: Six,
    norm: nn.LayerNorm,
    feed_forward: Callable,
) -> torch.Tensor:
    """The stream after the attention's branch and the feed-forward."""
    _, _, gate, shift, scale, ff_gate = modulation
    hidden_states, normed = ops.gate_residual_norm_modulate(
        hidden_states, branch, gate, scale, shift, eps=norm.eps
    )
    return ops.gate_residual(hidden_states, feed_forward(normed), ff_gate)


def zero_modulation(norm: nn.Module, temb: torch.Tensor, parts: int = 6) -> tuple[torch.Tensor, ...]:
    """Of AdaLayerNormZero (6) and AdaLayerNormZeroSingle (3): `[B, D]` each."""
    return norm.linear(norm.silu(temb)).chunk(parts, dim=1)


def clipped(hidden_states: torch.Tensor) -> torch.Tensor:
    """As diffusers keeps fp16 from infinity."""
    return hidden_states.clip(-65504, 65504) if hidden_states.dtype == torch.float16 else hidden_states


class JointProcessor(FusedProcessor):
    """Attention over a text and an image stream; each family has a `__call__` of its own."""

    def text_first(
        self,
        attn: nn.Module,
        image: Projections,
        text: Projections,
        norm: str,
        tables: Tables,
        text_tables: Tables,
    ) -> Projections:
        """The projections of both, normed and turned, one behind the other."""
        query, key = self.normed(attn, *image[:2], norm, (attn.norm_q, attn.norm_k), tables)
        norms = (attn.norm_added_q, attn.norm_added_k)
        text_query, text_key = self.normed(attn, *text[:2], norm, norms, text_tables)
        pairs = ((text_query, query), (text_key, key), (text[2], image[2]))
        return tuple(torch.cat(pair, dim=1) for pair in pairs)

    def out(
        self, attn: nn.Module, hidden_states: torch.Tensor, text: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output projections of the image's tokens and of the first `text` tokens."""
        encoder_hidden_states = hidden_states[:, :text]
        hidden_states = attn.to_out[0](hidden_states[:, text:].contiguous())
        if len(attn.to_out) > 1:
            hidden_states = attn.to_out[1](hidden_states)
        return hidden_states, attn.to_add_out(encoder_hidden_states.contiguous())
