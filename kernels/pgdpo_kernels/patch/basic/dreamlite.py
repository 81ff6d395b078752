"""DreamLite's form of the basic block, with LayerNorms; where it has no self-attention its first norm stands alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.attention import _chunked_feed_forward
from diffusers.models.transformers.transformer_2d_dreamlite import BasicTransformerBlockDreamLite
from torch import nn

from ..norms import affine
from ..plain import plain
from ..replace import Forward, Ops, Replacement, Unsupported
from .blocks import attentions, feed_forward

# As in diffusers 0.39 to 0.42.1
SOURCES = {
    BasicTransformerBlockDreamLite.forward: "2e0444b29f1de70a",
    _chunked_feed_forward: "c1e9a86d8d3a9af2",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    """Its attention keeps its processors: its keys may be fewer heads, and nothing is turned."""
    found: list[Replacement] = []
    with_attention, without = block_forward(ops), bare_forward(ops)
    for index, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{index}"
        if type(block) is not BasicTransformerBlockDreamLite:
            raise Unsupported(f"{path} is a {type(block).__name__}")
        if block.norm_type != "layer_norm" or block.pos_embed is not None or hasattr(block, "fuser"):
            raise Unsupported(
                f"{path} has norms of type {block.norm_type}, positions or grounding of its own"
            )
        if ops.in_blocks:
            found.append(Forward(block, path, with_attention if block.use_self_attention else without))
    return found


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: BasicTransformerBlockDreamLite,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> torch.Tensor:
        attend, cross_attend = attentions(
            self, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
        )
        return plain(ops, hidden_states, (self.norm1, attend), *later(self, cross_attend))

    return forward


def bare_forward(ops: Ops) -> Callable:
    def forward(
        self: BasicTransformerBlockDreamLite,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> torch.Tensor:
        _, cross_attend = attentions(
            self, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
        )
        hidden_states = ops.norm_modulate(hidden_states, **affine(self.norm1))
        return plain(ops, hidden_states, *later(self, cross_attend))

    return forward


def later(block: BasicTransformerBlockDreamLite, cross_attend: Callable) -> list[tuple[nn.Module, Callable]]:
    """What comes after self-attention."""
    halves = [(block.norm2, cross_attend)] if block.attn2 is not None else []
    return [*halves, (block.norm3, partial(feed_forward, block))]
