"""Ideogram 4: Lumina's block; q and k are normed and turned in halves of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ideogram4 import (
    Ideogram4AttnProcessor,
    Ideogram4TransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks
from .lumina import sandwich

# As in diffusers 0.39 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    Ideogram4TransformerBlock.forward: "b620a81e6647d4e1",
    Ideogram4AttnProcessor.__call__: "921dd8317d48764e",
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {Ideogram4TransformerBlock: block_forward(ops)}, (Ideogram4AttnProcessor,)
    return of_blocks(model, "layers", ops, forwards, "attention", FusedIdeogram4AttnProcessor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: Ideogram4TransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        adaln_input: torch.Tensor,  # [B, 1 or N, D']
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attention(normed, attention_mask=attention_mask, image_rotary_emb=image_rotary_emb)

        norms = (self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2)
        vectors = self.adaln_modulation(adaln_input).chunk(4, dim=-1)
        return sandwich(ops, hidden_states, norms, vectors, attend, self.feed_forward)

    return forward


class FusedIdeogram4AttnProcessor(FusedProcessor):
    """`Ideogram4AttnProcessor`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],  # cos and sin, [B, N, head size]
    ) -> torch.Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        weights = {"q_weight": attn.norm_q.weight, "k_weight": attn.norm_k.weight}
        weights |= dict(zip(("cos", "sin"), image_rotary_emb, strict=True))
        query, key = self.ops.qk_norm_rope(
            query,
            key,
            num_heads=attn.num_heads,
            norm="rms_head",
            rope="halves",
            eps=attn.norm_q.eps,
            **weights,
        )
        query, key, value = (x.unflatten(2, (attn.num_heads, -1)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[0](hidden_states.flatten(2, 3))
