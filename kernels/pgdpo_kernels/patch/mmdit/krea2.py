"""Krea 2: one stream, its norms have weights around 0; grouped-query attention keeps its processor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm, Krea2TransformerBlock
from torch import nn

from ..replace import Ops, Replacement, of_blocks, promoted

# As in diffusers 0.39 to 0.42.1
SOURCES = {
    Krea2TransformerBlock.forward: "c93d57358fca7cba",
    Krea2RMSNorm.forward: "ad6e9acc75f1118b",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "transformer_blocks", ops, {Krea2TransformerBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: Krea2TransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 1, 6 D]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        modulation = (temb.unflatten(-1, (6, -1)) + self.scale_shift_table).unbind(-2)
        scale, shift, gate, ff_scale, ff_shift, ff_gate = modulation
        hidden_states = promoted(hidden_states, gate)
        normed = ops.norm_modulate(hidden_states, scale, shift, **of_norm(self.norm1))
        branch = self.attn(normed, attention_mask=attention_mask, image_rotary_emb=image_rotary_emb)
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, **of_norm(self.norm2)
        )
        return ops.gate_residual(hidden_states, self.ff(normed), ff_gate)

    return forward


def of_norm(norm: Krea2RMSNorm) -> dict:
    return {"weight": norm.weight + 1, "norm": "rms", "eps": norm.eps}
