"""Wan 2.1 and 2.2: self-attention's norm and rotation, and both halves of every block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import (
    WanAttnProcessor,
    WanTransformerBlock,
    _get_qkv_projections,
)
from torch import nn

from .replace import Forward, Ops, Processor, Replacement

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    WanTransformerBlock.forward: "21c15441b009932c",
    WanAttnProcessor.__call__: "13c09feedcfe814a",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = []
    for index, block in enumerate(model.blocks):
        if ops.in_blocks:
            found.append(Forward(block, f"blocks.{index}", block_forward(ops)))
        if ops.in_attention:
            processor = FusedWanAttnProcessor(ops)
            found.append(Processor(block.attn1, f"blocks.{index}.attn1", processor, (WanAttnProcessor,)))
    return found


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


class FusedWanAttnProcessor:
    """`WanAttnProcessor` for self-attention; cross-attention, without a rotation, keeps its own."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, ops: Ops):
        self.ops = ops

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        query, key, value = _get_qkv_projections(attn, hidden_states, encoder_hidden_states)
        query, key = self.ops.qk_norm_rope(
            query,
            key,
            attn.norm_q.weight,
            attn.norm_k.weight,
            *(rotary_emb or (None, None)),
            num_heads=attn.heads,
            norm="rms_full",
            eps=attn.norm_q.eps,
        )
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        hidden_states = hidden_states.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](hidden_states))
