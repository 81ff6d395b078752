"""Allegro and Latte: PixArt's blocks; their attention has neither a norm nor a rotation that the ops know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention import BasicTransformerBlock, _chunked_feed_forward
from diffusers.models.transformers.transformer_allegro import AllegroTransformerBlock
from torch import nn

from ..replace import Forward, Ops, Replacement, Unsupported, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    AllegroTransformerBlock.forward: "0004da078cb60f96",
    BasicTransformerBlock.forward: "440071576ac5ee6f",
    _chunked_feed_forward: "c1e9a86d8d3a9af2",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    """Its attention keeps its processors."""
    found: list[Replacement] = []
    for stack in ("transformer_blocks", "temporal_transformer_blocks"):  # the latter are Latte's
        for index, block in enumerate(getattr(model, stack, ())):
            path = f"{stack}.{index}"
            if type(block) is AllegroTransformerBlock:
                forward = allegro_forward(ops)
            elif type(block) is BasicTransformerBlock and block.norm_type == "ada_norm_single":
                forward = latte_forward(ops)
            else:
                raise Unsupported(f"{path} is a {type(block).__name__} of other norms")
            if ops.in_blocks:
                found.append(Forward(block, path, forward))
    return found


def allegro_forward(ops: Ops) -> Callable:
    def forward(
        self: AllegroTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,  # [B, 6 D]
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple | None = None,
    ) -> torch.Tensor:
        return halves(
            ops,
            self,
            hidden_states,
            temb,
            lambda normed: self.attn1(
                normed,
                encoder_hidden_states=None,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            ),
            lambda x: self.attn2(
                x,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                image_rotary_emb=None,
            ),
            self.ff,
        )

    return forward


def latte_forward(ops: Ops) -> Callable:
    def forward(
        self: BasicTransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,  # [B, 6 D]
        cross_attention_kwargs: dict | None = None,
        class_labels: torch.Tensor | None = None,
        added_cond_kwargs: dict | None = None,
    ) -> torch.Tensor:
        def feed_forward(normed: torch.Tensor) -> torch.Tensor:
            if self._chunk_size is None:
                return self.ff(normed)
            return _chunked_feed_forward(self.ff, normed, self._chunk_dim, self._chunk_size)

        return halves(
            ops,
            self,
            hidden_states,
            timestep,
            lambda normed: self.attn1(normed, encoder_hidden_states=None, attention_mask=attention_mask),
            self.attn2
            and (
                lambda x: self.attn2(
                    x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
                )
            ),
            feed_forward,
        )

    return forward


def halves(
    ops: Ops,
    block: nn.Module,
    x: torch.Tensor,  # [B, N, D]
    temb: torch.Tensor,  # [B, 6 D]
    attention: Callable,
    cross_attention: Callable | None,
    feed_forward: Callable,
) -> torch.Tensor:
    """Self-attention under a gate, cross-attention without one and without a norm, feed-forward under a gate."""
    vectors = (block.scale_shift_table + temb.reshape(x.shape[0], 6, -1)).unbind(1)
    shift, scale, gate, ff_shift, ff_scale, ff_gate = vectors
    norm, ff_norm = affine(block.norm1), affine(block.norm2)
    x = promoted(x, gate)
    branch = attention(ops.norm_modulate(x, scale, shift, **norm))
    if cross_attention is not None:
        x = ops.gate_residual(x, branch, gate)
        branch, gate = cross_attention(x), None
    x, normed = ops.gate_residual_norm_modulate(x, branch, gate, ff_scale, ff_shift, **ff_norm)
    return ops.gate_residual(x, feed_forward(normed), ff_gate)


def affine(norm: nn.LayerNorm) -> dict:
    return {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}
