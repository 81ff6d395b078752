"""Wan 2.1 and 2.2: self-attention's norm and rotation, and both halves of every block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_wan import (
    WanAttnProcessor,
    WanTransformerBlock,
    _get_qkv_projections,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks
from ..residual import Residual

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    WanTransformerBlock.forward: "21c15441b009932c",
    WanAttnProcessor.__call__: "13c09feedcfe814a",
    _get_qkv_projections: "657bbdb508a6c612",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {WanTransformerBlock: block_forward(ops)}
    return of_blocks(model, "blocks", ops, forwards, "attn1", FusedWanAttnProcessor, (WanAttnProcessor,))


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 6, D], or [B, N, 6, D] with a timestep per token
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        return block(ops, self, hidden_states, encoder_hidden_states, temb.unbind(-2), rotary_emb)

    return forward


def block(
    ops: Ops,
    self: nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    embeddings: tuple[torch.Tensor, ...],  # six of [B, D] or [B, N, D]
    rotary_emb: tuple[torch.Tensor, torch.Tensor],
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    return branches(
        Residual(ops, hidden_states),
        (self.norm1, self.norm2, self.norm3),
        pairs(self.scale_shift_table, embeddings),
        lambda normed: self.attn1(normed, None, attention_mask, rotary_emb),
        lambda normed: self.attn2(normed, encoder_hidden_states, None, None),
        self.ffn,
    )


def pairs(table: torch.Tensor, embeddings: tuple[torch.Tensor, ...]) -> tuple:
    """shift, scale and gate of self-attention and of the feed-forward, from a table `[1, 6, D]`.

    Table and embedding stay unsummed: per token, the sum would be six times the hidden states in fp32.
    """
    return tuple(zip(table.to(embeddings[0].device)[0].unbind(0), embeddings, strict=True))


def branches(
    stream: Residual,
    norms: tuple[nn.Module, nn.Module, nn.Module],
    modulation: tuple,
    self_attention: Callable,
    cross_attention: Callable,
    feed_forward: Callable,
) -> torch.Tensor:
    """The three branches of a block of Wan's and of its kin, each a function of the normed hidden states."""
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation
    self_norm, cross_norm, ffn_norm = norms
    stream.add(self_attention(stream.normed(self_norm, scale, shift)), gate)
    normed = stream.total() if isinstance(cross_norm, nn.Identity) else stream.normed(cross_norm)
    stream.add(cross_attention(normed))
    stream.add(feed_forward(stream.normed(ffn_norm, ffn_scale, ffn_shift)), ffn_gate)
    return stream.total()


class FusedWanAttnProcessor(FusedProcessor):
    """`WanAttnProcessor` for self-attention; cross-attention, without a rotation, keeps its own."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        query, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key = self.normed(attn, query, key, "rms_full", (attn.norm_q, attn.norm_k), rotary_emb)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
