"""Helios: Wan's three branches over a history and the clip; guidance's cross-attention is of the clip alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_helios import (
    HeliosAttnProcessor,
    HeliosTransformerBlock,
    _get_qkv_projections,
    apply_rotary_emb_transposed,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks
from ..residual import Residual
from ..video.wan import branches, pairs

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    HeliosTransformerBlock.forward: "ce1e637747236395",
    HeliosAttnProcessor.__call__: "cee6afffceee8346",
    apply_rotary_emb_transposed: "dd8705f3b4438941",
    _get_qkv_projections: "b0cb3c3bd92bfe4a",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {HeliosTransformerBlock: block_forward(ops)}, (HeliosAttnProcessor,)
    return of_blocks(model, "blocks", ops, forwards, "attn1", FusedHeliosAttnProcessor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: HeliosTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 6, D] or [B, N, 6, D]
        rotary_emb: torch.Tensor,
        original_context_length: int | None = None,
    ) -> torch.Tensor:
        def self_attention(normed: torch.Tensor) -> torch.Tensor:
            return self.attn1(normed, None, None, rotary_emb, original_context_length)

        def cross_attention(normed: torch.Tensor) -> torch.Tensor:
            history = normed.shape[1] - original_context_length if self.guidance_cross_attn else 0
            clip = normed[:, history:]
            branch = self.attn2(clip, encoder_hidden_states, None, None, original_context_length)
            return nn.functional.pad(branch, (0, 0, history, 0))

        norms = (self.norm1, self.norm2, self.norm3)
        modulation = pairs(self.scale_shift_table, temb.unbind(-2))
        stream = Residual(ops, hidden_states)
        return branches(stream, norms, modulation, self_attention, cross_attention, self.ffn)

    return forward


class FusedHeliosAttnProcessor(FusedProcessor):
    """`HeliosAttnProcessor` for self-attention."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,  # [B, N, 2 * head size], cos and sin
        original_context_length: int | None = None,
    ) -> torch.Tensor:
        query, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        tables = rotary_emb if rotary_emb is None else rotary_emb.chunk(2, dim=-1)
        query, key = self.normed(attn, query, key, "rms_full", (attn.norm_q, attn.norm_k), tables)
        if attn.is_amplify_history:
            key = amplified(attn, key, key.shape[1] - original_context_length)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))


def amplified(attn: nn.Module, key: torch.Tensor, history: int) -> torch.Tensor:
    """The keys `[B, N, D]`, those of the history scaled by a number for all heads or for each."""
    if history <= 0:
        return key
    scale = 1.0 + torch.sigmoid(attn.history_key_scale) * (attn.max_scale - 1.0)
    scale = scale.expand(attn.heads).repeat_interleave(key.shape[2] // attn.heads)
    return torch.cat([key[:, :history] * scale, key[:, history:]], dim=1)
