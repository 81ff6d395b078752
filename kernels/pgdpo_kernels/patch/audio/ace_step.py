"""ACE-Step: RMS norms modulated by a table and an embedding; its keys are fewer heads, halves of them are turned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.ace_step_transformer import AceStepTransformerBlock
from torch import nn

from ..norms import affine
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.38 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    AceStepTransformerBlock.forward: "df32cf3684d4e298",
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "layers", ops, {AceStepTransformerBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: AceStepTransformerBlock,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        temb: torch.Tensor,  # [B, 6, D]
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        modulation = zip(self.scale_shift_table[0].unbind(0), temb.unbind(1), strict=True)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = modulation
        branch = self.self_attn(
            hidden_states=ops.norm_modulate(hidden_states, scale, shift, **affine(self.self_attn_norm)),
            image_rotary_emb=position_embeddings,
            attention_mask=attention_mask,
        )
        if self.use_cross_attention and encoder_hidden_states is not None:
            hidden_states, normed = ops.gate_residual_norm_modulate(
                hidden_states, branch, gate, **affine(self.cross_attn_norm)
            )
            gate = None
            branch = self.cross_attn(
                hidden_states=normed,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
            )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, **affine(self.mlp_norm)
        )
        return ops.gate_residual(hidden_states, self.mlp(normed), ff_gate)

    return forward
