"""CogVideoX 2b and 5b: text and video streams share a block, its norms have weights of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0
from diffusers.models.normalization import CogVideoXLayerNormZero
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import nn

from .replace import Forward, Ops, Processor, Replacement, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    CogVideoXBlock.forward: "f27caf0be5d9de2d",
    CogVideoXLayerNormZero.forward: "8e8e6c80a6b8de20",
    CogVideoXAttnProcessor2_0.__call__: "a1ecc57eaf6a958b",
    FusedCogVideoXAttnProcessor2_0.__call__: "5a1c50f8bf400f0e",
}
PROCESSORS = (CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0)


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = []
    for index, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{index}"
        if ops.in_blocks:
            found.append(Forward(block, path, block_forward(ops)))
        if ops.in_attention:
            processor = FusedNormCogVideoXAttnProcessor(ops)
            found.append(Processor(block.attn1, f"{path}.attn1", processor, PROCESSORS))
    return found


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: CogVideoXBlock,
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


class FusedNormCogVideoXAttnProcessor:
    """`CogVideoXAttnProcessor2_0`, and its form for fused projections, through diffusers' dispatcher."""

    _attention_backend = "native"  # they call torch's attention, whatever the backend
    _parallel_config = None

    def __init__(self, ops: Ops):
        self.ops = ops

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
        batch, tokens, _ = hidden_states.shape
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        if getattr(attn, "fused_projections", False):
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        cos, sin = (
            (None, None) if image_rotary_emb is None else (x.to(query.device) for x in image_rotary_emb)
        )
        norms = {"norm": "none"}
        if attn.norm_q is not None:
            norms = {"norm": "layer_head", "eps": attn.norm_q.eps}
            norms |= {"q_weight": attn.norm_q.weight, "k_weight": attn.norm_k.weight}
            norms |= {"q_bias": attn.norm_q.bias, "k_bias": attn.norm_k.bias}
        query, key = self.ops.qk_norm_rope(
            query, key, cos=cos, sin=sin, num_heads=attn.heads, rope_start=text, **norms
        )
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        hidden_states = hidden_states.flatten(2)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        encoder_hidden_states, hidden_states = hidden_states.split([text, tokens - text], dim=1)
        return hidden_states, encoder_hidden_states
