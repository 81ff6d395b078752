"""Qwen-Image, also its edit models (a second timestep for the images that are given) and its layered one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_qwenimage import (
    QwenDoubleStreamAttnProcessor2_0,
    QwenImageTransformerBlock,
    apply_rotary_emb_qwen,
)
from torch import nn

from ..replace import Forward, Ops, Replacement, of_blocks
from .joint import JointProcessor, Six, clipped, enter, leave

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    QwenImageTransformerBlock.forward: "89de238db44a7a47",
    QwenImageTransformerBlock._modulate: "9ee78b512057d504",
    QwenDoubleStreamAttnProcessor2_0.__call__: (
        "e6dfad13458f15b3",
        "2a0c20db8321b4d4",
        "ac06e31720cc08fc",
        "04a0b19727c265e5",
    ),
    apply_rotary_emb_qwen: "62c3cf93c5e4d4eb",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = [Forward(model.pos_embed, "pos_embed", real_tables)] if ops.in_attention else []
    forwards, known = {QwenImageTransformerBlock: block_forward(ops)}, (QwenDoubleStreamAttnProcessor2_0,)
    return found + of_blocks(
        model, "transformer_blocks", ops, forwards, "attn", FusedQwenAttnProcessor, known
    )


def real_tables(self: nn.Module, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the image and of the text, cos and sin side by side, `[N, head size]`: a tensor for each complex one."""
    return tuple(side_by_side(freqs) for freqs in type(self).forward(self, *args, **kwargs))


def side_by_side(freqs: torch.Tensor) -> torch.Tensor:
    return torch.cat([freqs.real, freqs.imag], dim=-1)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: QwenImageTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None,
        temb: torch.Tensor,  # [B, D], or [2 B, D]: of the timestep, and of 0
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
        modulate_index: torch.Tensor | None = None,  # [B, N], which of both
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own = selected(self.img_mod(temb).chunk(6, dim=-1), modulate_index)
        context = self.txt_mod(temb.chunk(2)[0] if self.zero_cond_t else temb).chunk(6, dim=-1)
        hidden_states, normed = enter(ops, hidden_states, own, self.img_norm1)
        encoder_hidden_states, text_normed = enter(ops, encoder_hidden_states, context, self.txt_norm1)
        branch, text_branch = self.attn(
            hidden_states=normed,
            encoder_hidden_states=text_normed,
            encoder_hidden_states_mask=encoder_hidden_states_mask,
            image_rotary_emb=image_rotary_emb,
            **(joint_attention_kwargs or {}),
        )
        hidden_states = leave(ops, hidden_states, branch, own, self.img_norm2, self.img_mlp)
        encoder_hidden_states = leave(
            ops, encoder_hidden_states, text_branch, context, self.txt_norm2, self.txt_mlp
        )
        return clipped(encoder_hidden_states), clipped(hidden_states)

    return forward


def selected(modulation: Six, index: torch.Tensor | None) -> Six:
    """With an index, a vector for each token, of the first half of the batch or of the second."""
    if index is None:
        return modulation
    first = (index == 0).unsqueeze(-1)
    halves = (vector.unsqueeze(1).chunk(2) for vector in modulation)
    return tuple(torch.where(first, a, b) for a, b in halves)


class FusedQwenAttnProcessor(JointProcessor):
    """`QwenDoubleStreamAttnProcessor2_0`, on tables of `real_tables`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # given by the model of 0.38
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if encoder_hidden_states_mask is not None:
            there = encoder_hidden_states_mask.new_ones(hidden_states.shape[:2], dtype=torch.bool)
            attention_mask = torch.cat([encoder_hidden_states_mask, there], dim=1)[:, None, None, :]
        image = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = tuple(projection(encoder_hidden_states) for projection in projections)
        tables = (table.chunk(2, dim=-1) for table in image_rotary_emb or ())
        own, context = tables if image_rotary_emb is not None else (None, None)
        joint = self.text_first(attn, image, text, "rms_head", own, context)
        return self.out(attn, self.attend(attn, *joint, attention_mask), encoder_hidden_states.shape[1])
