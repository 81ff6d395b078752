"""CogVideoX 2b and 5b, ConsisID: text and video streams share a block, its norms have weights of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0
from diffusers.models.normalization import CogVideoXLayerNormZero
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.consisid_transformer_3d import ConsisIDBlock
from torch import nn

from ..attention import FusedProcessor, mask_of_heads
from ..replace import Ops, Replacement, of_blocks, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    CogVideoXBlock.forward: "f27caf0be5d9de2d",
    ConsisIDBlock.forward: "ea9c5437242017ad",
    CogVideoXLayerNormZero.forward: "8e8e6c80a6b8de20",
    CogVideoXAttnProcessor2_0.__call__: "a1ecc57eaf6a958b",
    FusedCogVideoXAttnProcessor2_0.__call__: "5a1c50f8bf400f0e",
}
PROCESSORS = (CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0)


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forward, processor = block_forward(ops), FusedNormCogVideoXAttnProcessor
    forwards = {CogVideoXBlock: forward, ConsisIDBlock: forward}
    return of_blocks(model, "transformer_blocks", ops, forwards, "attn1", processor, PROCESSORS)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: CogVideoXBlock | ConsisIDBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.size(1)
        shift, scale, gate, text_shift, text_scale, text_gate = modulation(self.norm1, temb)
        norm = affine(self.norm1)
        hidden_states = promoted(hidden_states, gate)
        encoder_hidden_states = promoted(encoder_hidden_states, text_gate)
        branch, text_branch = self.attn1(
            hidden_states=ops.norm_modulate(hidden_states, scale, shift, **norm),
            encoder_hidden_states=ops.norm_modulate(encoder_hidden_states, text_scale, text_shift, **norm),
            image_rotary_emb=image_rotary_emb,
            **(attention_kwargs or {}),
        )

        shift, scale, ff_gate, text_shift, text_scale, text_ff_gate = modulation(self.norm2, temb)
        norm = affine(self.norm2)
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, scale, shift, **norm
        )
        encoder_hidden_states, text_normed = ops.gate_residual_norm_modulate(
            encoder_hidden_states, text_branch, text_gate, text_scale, text_shift, **norm
        )
        branch = self.ff(torch.cat([text_normed, normed], dim=1))
        return (
            ops.gate_residual(hidden_states, branch[:, text:], ff_gate),
            ops.gate_residual(encoder_hidden_states, branch[:, :text], text_ff_gate),
        )

    return forward


def modulation(norm: CogVideoXLayerNormZero, temb: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """shift, scale and gate of the video, then of the text, each `[B, D]`."""
    return norm.linear(norm.silu(temb)).chunk(6, dim=1)


def affine(norm: CogVideoXLayerNormZero) -> dict:
    return {"weight": norm.norm.weight, "bias": norm.norm.bias, "eps": norm.norm.eps}


class FusedNormCogVideoXAttnProcessor(FusedProcessor):
    """`CogVideoXAttnProcessor2_0`, and its form for fused projections, through diffusers' dispatcher."""

    _attention_backend = "native"  # they call torch's attention, whatever the backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.size(1)
        hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        attention_mask = mask_of_heads(attn, attention_mask, hidden_states)
        if getattr(attn, "fused_projections", False):
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        tables = image_rotary_emb and tuple(table.to(query.device) for table in image_rotary_emb)
        norms = (attn.norm_q, attn.norm_k)
        query, key = self.normed(attn, query, key, "layer_head", norms, tables, rope_start=text)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        encoder_hidden_states, hidden_states = hidden_states.split(
            [text, hidden_states.shape[1] - text], dim=1
        )
        return hidden_states, encoder_hidden_states
