"""LTX-Video: RMS norms, and a rotation over the full width with a table entry for every element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_ltx import (
    LTXVideoAttnProcessor,
    LTXVideoRotaryPosEmbed,
    LTXVideoTransformerBlock,
    apply_rotary_emb,
)
from torch import nn

from ..attention import FusedProcessor, mask_of_heads
from ..replace import Forward, Ops, Replacement, of_blocks, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    LTXVideoTransformerBlock.forward: "da45ce5e81f3b50e",
    LTXVideoAttnProcessor.__call__: "cac2aabbea3a63db",
    LTXVideoRotaryPosEmbed.forward: "ca35875c81fc0c04",
    apply_rotary_emb: "fa3a0a3ad5c63101",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = [Forward(model.rope, "rope", half_tables)] if ops.in_attention else []
    forwards, known = {LTXVideoTransformerBlock: block_forward(ops)}, (LTXVideoAttnProcessor,)
    return found + of_blocks(
        model, "transformer_blocks", ops, forwards, "attn1", FusedLTXVideoAttnProcessor, known
    )


def half_tables(self: LTXVideoRotaryPosEmbed, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[B, N, D / 2]`, one value per pair: every block reads them, at four bytes a value."""
    cos, sin = type(self).forward(self, *args, **kwargs)
    return cos[..., ::2].contiguous(), sin[..., ::2].contiguous()


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: LTXVideoTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 1 or N, 6 D]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        embeddings = temb.unflatten(2, (self.scale_shift_table.shape[0], -1)).unbind(2)
        tables = self.scale_shift_table.to(temb.device).unbind(0)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = zip(tables, embeddings, strict=True)
        hidden_states = promoted(hidden_states, self.scale_shift_table, temb)

        normed = ops.norm_modulate(
            hidden_states, scale, shift, weight=self.norm1.weight, norm="rms", eps=self.norm1.eps
        )
        branch = self.attn1(
            hidden_states=normed, encoder_hidden_states=None, image_rotary_emb=image_rotary_emb
        )
        hidden_states = ops.gate_residual(hidden_states, branch, gate)
        branch = self.attn2(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            image_rotary_emb=None,
            attention_mask=encoder_attention_mask,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states,
            branch,
            None,
            ff_scale,
            ff_shift,
            weight=self.norm2.weight,
            norm="rms",
            eps=self.norm2.eps,
        )
        return ops.gate_residual(hidden_states, self.ff(normed), ff_gate)

    return forward


class FusedLTXVideoAttnProcessor(FusedProcessor):
    """`LTXVideoAttnProcessor` for self-attention, on tables of `half_tables`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        attention_mask = mask_of_heads(attn, attention_mask, hidden_states)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        tables = image_rotary_emb and tuple(
            table.unflatten(2, (attn.heads, -1)) for table in image_rotary_emb
        )
        query, key = self.normed(attn, query, key, "rms_full", (attn.norm_q, attn.norm_k), tables)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
