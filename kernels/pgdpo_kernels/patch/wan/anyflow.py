"""AnyFlow, and its causal form, whose attention keeps keys in a cache before the rotation and stays diffusers'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers import transformer_anyflow, transformer_anyflow_far
from diffusers.models.transformers.transformer_anyflow import (
    AnyFlowAttnProcessor,
    AnyFlowRotaryPosEmbed,
    apply_rotary_emb,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Forward, Ops, Replacement, of_blocks
from ..residual import Residual
from ..video.wan import branches, pairs

# As in diffusers 0.39 to 0.42.1
SOURCES = {
    transformer_anyflow.AnyFlowTransformerBlock.forward: "b77809e46e9ece63",
    transformer_anyflow_far.AnyFlowTransformerBlock.forward: "b77809e46e9ece63",
    AnyFlowAttnProcessor.__call__: "8e4a363f7d1a11b8",
    AnyFlowRotaryPosEmbed.forward: ("a89fecaccd33d257", "381af919f9d7ce05"),
    apply_rotary_emb: "d95313790ffcbb1e",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        copy.AnyFlowTransformerBlock: block_forward(ops)
        for copy in (transformer_anyflow, transformer_anyflow_far)
    }
    if not isinstance(model.rope, AnyFlowRotaryPosEmbed):
        return of_blocks(model, "blocks", ops, forwards)
    found = [Forward(model.rope, "rope", real_tables)] if ops.in_attention else []
    known = (AnyFlowAttnProcessor,)
    return found + of_blocks(model, "blocks", ops, forwards, "attn1", FusedAnyFlowAttnProcessor, known)


def real_tables(self: AnyFlowRotaryPosEmbed, *args, **kwargs) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin `[N, head size / 2]` in fp32, in place of complex numbers of 16 bytes."""
    turns = type(self).forward(self, *args, **kwargs)["query"][0, 0]  # those of the keys are the same
    return turns.real.float(), turns.imag.float()


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, N, 6, D]
        rotary_emb: dict[str, torch.Tensor] | tuple[torch.Tensor, torch.Tensor],
        attention_mask,
        kv_cache: dict | None = None,
        kv_cache_flag: dict | None = None,
    ) -> torch.Tensor:
        cache = {} if kv_cache is None else {"kv_cache": kv_cache, "kv_cache_flag": kv_cache_flag}

        def self_attention(normed: torch.Tensor) -> torch.Tensor:
            return self.attn1(
                hidden_states=normed, rotary_emb=rotary_emb, attention_mask=attention_mask, **cache
            )

        def cross_attention(normed: torch.Tensor) -> torch.Tensor:
            return self.attn2(hidden_states=normed, encoder_hidden_states=encoder_hidden_states)

        norms = (self.norm1, self.norm2, self.norm3)
        modulation = pairs(self.scale_shift_table, temb.unbind(2))
        stream = Residual(ops, hidden_states)
        return branches(stream, norms, modulation, self_attention, cross_attention, self.ffn)

    return forward


class FusedAnyFlowAttnProcessor(FusedProcessor):
    """`AnyFlowAttnProcessor` for self-attention, on `real_tables`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = self.normed(attn, query, key, "rms_full", (attn.norm_q, attn.norm_k), rotary_emb)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
