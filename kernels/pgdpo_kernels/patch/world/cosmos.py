"""Cosmos 1, 2 and 2.5: blocks, and the norms of q and k, whose heads are turned in halves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_cosmos import (
    CosmosAdaLayerNormZero,
    CosmosAttnProcessor2_0,
    CosmosTransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks, promoted
from ..residual import Residual

# As in diffusers 0.38 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    CosmosTransformerBlock.forward: "c208749aa8231854",
    CosmosAdaLayerNormZero.forward: "c518f36caac8a01a",
    CosmosAttnProcessor2_0.__call__: "5ec61c5c75427857",
    apply_rotary_emb: "a25267d425f8c5ea",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {CosmosTransformerBlock: block_forward(ops)}, (CosmosAttnProcessor2_0,)
    return of_blocks(model, "transformer_blocks", ops, forwards, "attn1", FusedCosmosAttnProcessor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: CosmosTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | tuple[torch.Tensor | None, torch.Tensor | None] | None,
        embedded_timestep: torch.Tensor,  # [B, D] or [B, N, D]
        temb: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        extra_pos_emb: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        controlnet_residual: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        block_idx: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if self.before_proj is not None:
            hidden_states = self.before_proj(hidden_states) + latents
        if extra_pos_emb is not None:
            hidden_states = hidden_states + extra_pos_emb

        text = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": attention_mask}
        branches = (
            (self.norm1, lambda normed: self.attn1(normed, image_rotary_emb=image_rotary_emb)),
            (self.norm2, lambda normed: self.attn2(normed, **text)),
            (self.norm3, self.ff),
        )
        stream = Residual(ops, promoted(hidden_states, embedded_timestep))
        for norm, branch in branches:
            shift, scale, gate = modulation(norm, embedded_timestep, temb)
            stream.add(branch(stream.normed(norm.norm, scale, shift)), gate)
        hidden_states = stream.total()

        if controlnet_residual is not None:
            assert self.after_proj is None
            hidden_states = hidden_states + controlnet_residual
        if self.after_proj is not None:
            assert controlnet_residual is None
            return hidden_states, self.after_proj(hidden_states)
        return hidden_states

    return forward


def modulation(
    norm: CosmosAdaLayerNormZero, embedded: torch.Tensor, temb: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    embedded = norm.linear_2(norm.linear_1(norm.activation(embedded)))
    return (embedded if temb is None else embedded + temb).chunk(3, dim=-1)


class FusedCosmosAttnProcessor(FusedProcessor):
    """`CosmosAttnProcessor2_0` for self-attention."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        norms, tables = (attn.norm_q, attn.norm_k), image_rotary_emb
        query, key = self.normed(attn, query, key, "rms_head", norms, tables, rope="halves")
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
