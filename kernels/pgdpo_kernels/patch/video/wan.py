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

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    WanTransformerBlock.forward: "21c15441b009932c",
    WanAttnProcessor.__call__: "13c09feedcfe814a",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {WanTransformerBlock: block_forward(ops)}
    return of_blocks(model, "blocks", ops, forwards, "attn1", FusedWanAttnProcessor, (WanAttnProcessor,))


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: WanTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 6, D], or [B, N, 6, D] with a timestep per token
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        # Table and embedding stay unsummed: per token, the sum would be six times the hidden states in fp32.
        modulation = zip(self.scale_shift_table[0].unbind(0), temb.unbind(-2), strict=True)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation

        normed = ops.norm_modulate(hidden_states, scale, shift, eps=self.norm1.eps)
        branch = self.attn1(normed, None, None, rotary_emb)
        if isinstance(self.norm2, nn.Identity):
            hidden_states = normed = ops.gate_residual(hidden_states, branch, gate)
        else:
            hidden_states, normed = ops.gate_residual_norm_modulate(
                hidden_states,
                branch,
                gate,
                weight=self.norm2.weight,
                bias=self.norm2.bias,
                eps=self.norm2.eps,
            )
        branch = self.attn2(normed, encoder_hidden_states, None, None)
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, None, ffn_scale, ffn_shift, eps=self.norm3.eps
        )
        return ops.gate_residual(hidden_states, self.ffn(normed), ffn_gate)

    return forward


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
