"""PRX: queries of the image alone, keys of text and image, and tables of 2 x 2 matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_prx import (
    PRXAttnProcessor2_0,
    PRXBlock,
    PRXEmbedND,
    apply_rope,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Forward, Ops, Replacement, of_blocks, promoted

# As in diffusers 0.38 to 0.42.1: `rope` in other words since 0.39, a mask that broadcasts since 0.41
SOURCES = {
    PRXBlock.forward: "01cfedae5302c55d",
    PRXAttnProcessor2_0.__call__: ("52a734a0f81333e4", "45377eaa971d5478"),
    PRXEmbedND.forward: "4f70da2137765b35",
    PRXEmbedND.rope: ("8ac3f67ef2d69e5c", "6e7642d1b8392847"),
    apply_rope: "26af38c91df9e09b",
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = [Forward(model.pe_embedder, "pe_embedder", half_tables)] if ops.in_attention else []
    forwards, known = {PRXBlock: block_forward(ops)}, (PRXAttnProcessor2_0,)
    return found + of_blocks(model, "blocks", ops, forwards, "attention", FusedPRXAttnProcessor, known)


def half_tables(self: PRXEmbedND, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[B, N, head size / 2]`."""
    matrices = type(self).forward(self, ids).squeeze(1)
    return matrices[..., 0, 0].contiguous(), matrices[..., 1, 0].contiguous()


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: PRXBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        (shift, scale, gate), (ff_shift, ff_scale, ff_gate) = self.modulation(temb)
        hidden_states = promoted(hidden_states, gate)
        branch = self.attention(
            hidden_states=ops.norm_modulate(hidden_states, scale, shift, eps=self.img_pre_norm.eps),
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, eps=self.post_attention_layernorm.eps
        )
        branch = self.down_proj(self.mlp_act(self.gate_proj(normed)) * self.up_proj(normed))
        return ops.gate_residual(hidden_states, branch, ff_gate)

    return forward


class FusedPRXAttnProcessor(FusedProcessor):
    """`PRXAttnProcessor2_0`, on tables of `half_tables`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,  # of the text, [B, M]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> torch.Tensor:
        query, key, value = attn.img_qkv_proj(hidden_states).chunk(3, dim=-1)
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), image_rotary_emb)
        text_key, text_value = attn.txt_kv_proj(encoder_hidden_states).chunk(2, dim=-1)
        text_key = attn.norm_added_k(text_key.unflatten(2, (attn.heads, -1))).flatten(2)
        if attention_mask is not None:
            if attention_mask.shape != text_key.shape[:2]:
                raise ValueError(
                    f"attention_mask must be {tuple(text_key.shape[:2])}, a value for each token of the text, "
                    f"got {tuple(attention_mask.shape)}"
                )
            image_mask = attention_mask.new_ones(query.shape[:2], dtype=torch.bool)
            attention_mask = torch.cat([attention_mask.bool(), image_mask], dim=1)[:, None, None]
        key, value = torch.cat([text_key, key], dim=1), torch.cat([text_value, value], dim=1)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states
