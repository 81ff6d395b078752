"""Allegro: PixArt's block; its attention has neither a norm nor a rotation that the ops know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_allegro import AllegroTransformerBlock
from torch import nn

from ..norms import affine
from ..replace import Forward, Ops, Replacement, Unsupported, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {AllegroTransformerBlock.forward: "0004da078cb60f96"}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    """Its attention keeps its processors."""
    found: list[Replacement] = []
    for index, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{index}"
        if not isinstance(block, AllegroTransformerBlock):
            raise Unsupported(f"{path} is a {type(block).__name__}")
        if ops.in_blocks:
            found.append(Forward(block, path, block_forward(ops)))
    return found


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: AllegroTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,  # [B, 6 D]
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple | None = None,
    ) -> torch.Tensor:
        embedding = self.scale_shift_table + temb.reshape(hidden_states.shape[0], 6, -1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = embedding.unbind(1)
        hidden_states = promoted(hidden_states, gate)

        branch = self.attn1(
            ops.norm_modulate(hidden_states, scale, shift, **affine(self.norm1)),
            encoder_hidden_states=None,
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )
        hidden_states = ops.gate_residual(hidden_states, branch, gate)
        branch = self.attn2(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=encoder_attention_mask,
            image_rotary_emb=None,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, None, ff_scale, ff_shift, **affine(self.norm2)
        )
        return ops.gate_residual(hidden_states, self.ff(normed), ff_gate)

    return forward
