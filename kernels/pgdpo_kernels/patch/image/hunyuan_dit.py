"""HunyuanDiT: norms with a shift alone, residuals without gates, self-attention's norm and rotation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_processor import FusedHunyuanAttnProcessor2_0, HunyuanAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.hunyuan_transformer_2d import AdaLayerNormShift, HunyuanDiTBlock
from torch import nn

from ..attention import FusedProcessor, mask_of_heads
from ..norms import affine
from ..replace import Ops, Replacement, of_blocks, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    HunyuanDiTBlock.forward: "cd2b070e195e2832",
    AdaLayerNormShift.forward: "6a5707031e261e59",
    FP32LayerNorm.forward: "fb3a8812f75a9d83",
    HunyuanAttnProcessor2_0.__call__: "4b4e4e75b798e0a7",
    FusedHunyuanAttnProcessor2_0.__call__: "edaec4791f193d82",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {HunyuanDiTBlock: block_forward(ops)}
    processor, known = (
        FusedNormHunyuanAttnProcessor,
        (HunyuanAttnProcessor2_0, FusedHunyuanAttnProcessor2_0),
    )
    return of_blocks(model, "blocks", ops, forwards, "attn1", processor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: HunyuanDiTBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.skip_linear is not None:
            hidden_states = torch.cat([hidden_states, skip], dim=-1)
            hidden_states = self.skip_linear(ops.norm_modulate(hidden_states, **affine(self.skip_norm)))
        shift = self.norm1.linear(self.norm1.silu(temb.float()).to(temb.dtype))
        normed = ops.norm_modulate(hidden_states, None, shift, **affine(self.norm1.norm))
        branch = self.attn1(normed, image_rotary_emb=image_rotary_emb)
        hidden_states = promoted(hidden_states, branch)
        hidden_states, normed = ops.gate_residual_norm_modulate(hidden_states, branch, **affine(self.norm2))
        branch = self.attn2(
            normed, encoder_hidden_states=encoder_hidden_states, image_rotary_emb=image_rotary_emb
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(hidden_states, branch, **affine(self.norm3))
        return hidden_states + self.ff(normed)

    return forward


class FusedNormHunyuanAttnProcessor(FusedProcessor):
    """`HunyuanAttnProcessor2_0`, fused projections too, for self-attention; cross-attention keeps its own."""

    _attention_backend = "native"  # it calls torch's attention, whatever the backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        attention_mask = mask_of_heads(attn, attention_mask, hidden_states)
        if getattr(attn, "fused_projections", False):
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        tables = image_rotary_emb and tuple(
            table.to(query.device).expand(query.shape[1], -1)
            for table in image_rotary_emb  # one row: for all
        )
        query, key = self.normed(attn, query, key, "layer_head", (attn.norm_q, attn.norm_k), tables)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
