"""Wan-Animate-2: Wan's three branches. Its attention, which turns keys in float64 that it kept, stays diffusers'."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2TransformerBlock
from torch import nn

from ..replace import Ops, Replacement, of_blocks
from ..residual import Residual
from ..video.wan import branches, pairs

# As in diffusers 0.40 to 0.42.1
SOURCES = {WanAnimate2TransformerBlock.forward: "74787ccb8f11a48f"}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "blocks", ops, {WanAnimate2TransformerBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: WanAnimate2TransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 6, D]
        encoder_hidden_states: torch.Tensor,
        kv_cache,
        kv_cache_mode: str,
        rotary_emb: torch.Tensor,
        grid_sizes: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        **reference,  # and the mask, of the pass that has a reference in the cache
    ) -> torch.Tensor:
        def self_attention(normed: torch.Tensor) -> torch.Tensor:
            return self.self_attn(
                normed,
                rotary_emb=rotary_emb,
                grid_sizes=grid_sizes,
                kv_cache=kv_cache,
                kv_cache_mode=kv_cache_mode,
                rope_stride=self.refer_stride if kv_cache_mode == "extract" else 1,
                reference_rope_stride=self.refer_stride,
                **reference,
            )

        def cross_attention(normed: torch.Tensor) -> torch.Tensor:
            return self.cross_attn(
                normed,
                encoder_hidden_states=encoder_hidden_states,
                encoder_hidden_states_image=encoder_hidden_states_image,
            )

        norms = (self.norm1, self.norm3, self.norm2)
        modulation = pairs(self.modulation, temb.unbind(1))
        stream = Residual(ops, hidden_states)
        return branches(stream, norms, modulation, self_attention, cross_attention, self.ffn)

    return forward
