"""diffusers' `BasicTransformerBlock`, where its norms are LayerNorms: PixArt, Latte, DiT and UNets' parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from diffusers.models.attention import BasicTransformerBlock, _chunked_feed_forward
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn

from ..norms import affine
from ..plain import plain
from ..replace import Forward, Ops, Replacement, Unsupported, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    BasicTransformerBlock.forward: "440071576ac5ee6f",
    AdaLayerNormZero.forward: "93374820c014f812",
    _chunked_feed_forward: "c1e9a86d8d3a9af2",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    """Its attention keeps its processors: no norm or rotation stands before them."""
    forwards = {
        "ada_norm_single": single_forward(ops),
        "ada_norm_zero": zero_forward(ops),
        "layer_norm": plain_forward(ops),
    }
    found: list[Replacement] = []
    for stack in ("transformer_blocks", "temporal_transformer_blocks"):  # the latter are Latte's
        for index, block in enumerate(getattr(model, stack, ())):
            path = f"{stack}.{index}"
            if type(block) is not BasicTransformerBlock:
                raise Unsupported(f"{path} is a {type(block).__name__}")
            if block.norm_type not in forwards or block.pos_embed is not None or hasattr(block, "fuser"):
                raise Unsupported(
                    f"{path} has norms of type {block.norm_type}, positions or grounding of its own"
                )
            if ops.in_blocks:
                forward = forwards[block.norm_type]
                found.append(Forward(block, path, forward))
    return found


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: BasicTransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,  # the embedding, [B, 6 D]
        cross_attention_kwargs: dict | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> torch.Tensor:
        """PixArt: a table and an embedding; cross-attention of the hidden states as they are."""
        tables = self.scale_shift_table.unbind(0)
        embeddings = timestep.reshape(hidden_states.shape[0], 6, -1).unbind(1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = zip(tables, embeddings, strict=True)
        hidden_states = promoted(hidden_states, self.scale_shift_table, timestep)
        attend, cross_attend = attentions(
            self, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
        )

        branch = attend(ops.norm_modulate(hidden_states, scale, shift, **affine(self.norm1)))
        if self.attn2 is not None:
            hidden_states = ops.gate_residual(hidden_states, branch, gate)
            branch, gate = cross_attend(hidden_states), None
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, **affine(self.norm2)
        )
        return ops.gate_residual(hidden_states, feed_forward(self, normed), ff_gate)

    return forward


def zero_forward(ops: Ops) -> Callable:
    def forward(
        self: BasicTransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> torch.Tensor:
        """DiT: an embedding of timestep and class in every block."""
        vectors = embedded(self.norm1, hidden_states, timestep, class_labels)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = vectors
        hidden_states = promoted(hidden_states, gate)
        attend, cross_attend = attentions(
            self, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
        )

        branch = attend(ops.norm_modulate(hidden_states, scale, shift, **affine(self.norm1.norm)))
        if self.attn2 is not None:
            hidden_states, normed = ops.gate_residual_norm_modulate(
                hidden_states, branch, gate, **affine(self.norm2)
            )
            branch, gate = cross_attend(normed), None
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, **affine(self.norm3)
        )
        return ops.gate_residual(hidden_states, feed_forward(self, normed), ff_gate)

    return forward


def plain_forward(ops: Ops) -> Callable:
    def forward(
        self: BasicTransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> torch.Tensor:
        """A block of UNets: no modulation, norms with weights of their own."""
        attend, cross_attend = attentions(
            self, attention_mask, encoder_hidden_states, encoder_attention_mask, cross_attention_kwargs
        )
        halves = [(self.norm1, attend), (self.norm2, cross_attend), (self.norm3, partial(feed_forward, self))]
        if self.attn2 is None:
            del halves[1]
        return plain(ops, hidden_states, *halves)

    return forward


def attentions(
    block: BasicTransformerBlock,
    mask: torch.Tensor | None,
    text: torch.Tensor | None,
    text_mask: torch.Tensor | None,
    arguments: dict | None,
) -> tuple[Callable, Callable]:
    """Both attentions of a block as functions of the normed hidden states."""
    arguments = arguments or {}
    first = text if block.only_cross_attention else None

    def attend(normed: torch.Tensor) -> torch.Tensor:
        return block.attn1(normed, encoder_hidden_states=first, attention_mask=mask, **arguments)

    def cross_attend(normed: torch.Tensor) -> torch.Tensor:
        return block.attn2(normed, encoder_hidden_states=text, attention_mask=text_mask, **arguments)

    return attend, cross_attend


def embedded(
    norm: AdaLayerNormZero, hidden_states: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Shift, scale and gate of attention, then of the feed-forward, each `[B, D]`."""
    embedding = norm.emb(timestep, class_labels, hidden_dtype=hidden_states.dtype)
    return norm.linear(norm.silu(embedding)).chunk(6, dim=1)


def feed_forward(block: BasicTransformerBlock, normed: torch.Tensor) -> torch.Tensor:
    if block._chunk_size is None:
        return block.ff(normed)
    return _chunked_feed_forward(block.ff, normed, block._chunk_dim, block._chunk_size)
