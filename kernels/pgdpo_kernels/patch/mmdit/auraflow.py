"""AuraFlow: blocks whose feed-forward is added to what came in, not to what attention left."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_processor import AuraFlowAttnProcessor2_0, FusedAuraFlowAttnProcessor2_0
from diffusers.models.normalization import AdaLayerNormZero, FP32LayerNorm
from diffusers.models.transformers.auraflow_transformer_2d import (
    AuraFlowJointTransformerBlock,
    AuraFlowSingleTransformerBlock,
)
from torch import nn

from ..replace import Ops, Replacement, of_blocks
from .joint import JointProcessor, Six, enter, zero_modulation

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    AuraFlowJointTransformerBlock.forward: "6894d24bb03a72d6",
    AuraFlowSingleTransformerBlock.forward: "5f4fdc1a05e53139",
    AuraFlowAttnProcessor2_0.__call__: "3605c2b39cd53127",
    FusedAuraFlowAttnProcessor2_0.__call__: "12896e33317d4ec4",
    AdaLayerNormZero.forward: "93374820c014f812",
    FP32LayerNorm.forward: "fb3a8812f75a9d83",
}
PROCESSORS = (AuraFlowAttnProcessor2_0, FusedAuraFlowAttnProcessor2_0)


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        AuraFlowJointTransformerBlock: joint_forward(ops),
        AuraFlowSingleTransformerBlock: single_forward(ops),
    }
    processor = FusedNormAuraFlowAttnProcessor
    return [
        item
        for stack in ("joint_transformer_blocks", "single_transformer_blocks")
        for item in of_blocks(model, stack, ops, forwards, "attn", processor, PROCESSORS)
    ]


def leave(
    ops: Ops, residual: torch.Tensor, branch: torch.Tensor, modulation: Six, norm: nn.Module, ff: Callable
) -> torch.Tensor:
    _, _, gate, shift, scale, ff_gate = modulation
    _, normed = ops.gate_residual_norm_modulate(residual, branch, gate, scale, shift, eps=norm.eps)
    return ops.gate_residual(residual, ff(normed), ff_gate)


def joint_forward(ops: Ops) -> Callable:
    def forward(
        self: AuraFlowJointTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own, context = (zero_modulation(norm, temb) for norm in (self.norm1, self.norm1_context))
        hidden_states, normed = enter(ops, hidden_states, own, self.norm1)
        encoder_hidden_states, text_normed = enter(ops, encoder_hidden_states, context, self.norm1_context)
        branch, text_branch = self.attn(
            hidden_states=normed, encoder_hidden_states=text_normed, **(attention_kwargs or {})
        )
        return (
            leave(ops, encoder_hidden_states, text_branch, context, self.norm2_context, self.ff_context),
            leave(ops, hidden_states, branch, own, self.norm2, self.ff),
        )

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: AuraFlowSingleTransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_kwargs: dict | None = None,
    ) -> torch.Tensor:
        modulation = zero_modulation(self.norm1, temb)
        hidden_states, normed = enter(ops, hidden_states, modulation, self.norm1)
        branch = self.attn(hidden_states=normed, **(attention_kwargs or {}))
        return leave(ops, hidden_states, branch, modulation, self.norm2, self.ff)

    return forward


class FusedNormAuraFlowAttnProcessor(JointProcessor):
    """`AuraFlowAttnProcessor2_0`, and its form for fused projections, through diffusers' dispatcher."""

    _attention_backend = "native"  # they call torch's attention, whatever the backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # not read, as there
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        fused = getattr(attn, "fused_projections", False)
        image = (
            attn.to_qkv(hidden_states).chunk(3, dim=-1)
            if fused
            else (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        )
        if encoder_hidden_states is None:
            norms = (attn.norm_q, attn.norm_k)
            query, key = self.normed(attn, *image[:2], "layer_head", norms, None)
            hidden_states = self.attend(attn, query, key, image[2])
            return attn.to_out[1](attn.to_out[0](hidden_states))
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = (
            attn.to_added_qkv(encoder_hidden_states).chunk(3, dim=-1)
            if fused
            else tuple(projection(encoder_hidden_states) for projection in projections)
        )
        joint = self.text_first(attn, image, text, "layer_head", None, None)
        return self.out(attn, self.attend(attn, *joint), encoder_hidden_states.shape[1])
