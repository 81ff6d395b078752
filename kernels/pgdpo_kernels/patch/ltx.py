"""LTX-Video: RMS norms, and a rotation over the full width with a table entry for every element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx import (
    LTXVideoAttnProcessor,
    LTXVideoRotaryPosEmbed,
    LTXVideoTransformerBlock,
    apply_rotary_emb,
)
from torch import nn

from .replace import Forward, Ops, Processor, Replacement, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    LTXVideoTransformerBlock.forward: "da45ce5e81f3b50e",
    LTXVideoAttnProcessor.__call__: "cac2aabbea3a63db",
    LTXVideoRotaryPosEmbed.forward: "ca35875c81fc0c04",
    apply_rotary_emb: "fa3a0a3ad5c63101",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = [Forward(model.rope, "rope", half_tables)] if ops.in_attention else []
    for index, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{index}"
        if ops.in_blocks:
            found.append(Forward(block, path, block_forward(ops)))
        if ops.in_attention:
            processor = FusedLTXVideoAttnProcessor(ops)
            found.append(Processor(block.attn1, f"{path}.attn1", processor, (LTXVideoAttnProcessor,)))
    return found


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


class FusedLTXVideoAttnProcessor:
    """`LTXVideoAttnProcessor` for self-attention, on tables of `half_tables`."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, ops: Ops):
        self.ops = ops

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if attention_mask is not None:
            batch, tokens, _ = hidden_states.shape
            attention_mask = attn.prepare_attention_mask(attention_mask, tokens, batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        tables = (None, None)
        if image_rotary_emb is not None:
            tables = (table.unflatten(2, (attn.heads, -1)) for table in image_rotary_emb)
        query, key = self.ops.qk_norm_rope(
            query,
            key,
            attn.norm_q.weight,
            attn.norm_k.weight,
            *tables,
            num_heads=attn.heads,
            norm="rms_full",
            eps=attn.norm_q.eps,
        )
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        return attn.to_out[1](attn.to_out[0](hidden_states))
