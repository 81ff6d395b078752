"""Chroma: FLUX.1's blocks with all modulation from one network, and a mask of tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_chroma import (
    ChromaAdaLayerNormZeroPruned,
    ChromaAdaLayerNormZeroSinglePruned,
    ChromaSingleTransformerBlock,
    ChromaTransformerBlock,
)
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

from ..replace import Ops, Replacement
from .flux import dual, flux_mlp, of_stacks, single

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    ChromaTransformerBlock.forward: "c532ef9f179693a1",
    ChromaSingleTransformerBlock.forward: "c83cdf6b2380d707",
    ChromaAdaLayerNormZeroPruned.forward: "d94e30527ceb2334",
    ChromaAdaLayerNormZeroSinglePruned.forward: "b4f0c98b53509af0",
    FluxAttnProcessor.__call__: ("d5b36134887ebe45", "6576b68b6158e83b"),
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        ChromaTransformerBlock: dual_forward(ops),
        ChromaSingleTransformerBlock: single_forward(ops),
    }
    return of_stacks(model, ops, forwards, (FluxAttnProcessor,))


def dual_forward(ops: Ops) -> Callable:
    def forward(
        self: ChromaTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 12, D]: of the image, then of the text
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own, context = temb[:, :6].unbind(1), temb[:, 6:].unbind(1)
        kwargs = attention(image_rotary_emb, attention_mask, joint_attention_kwargs)
        return dual(ops, self, hidden_states, encoder_hidden_states, own, context, **kwargs)

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: ChromaSingleTransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 3, D]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> torch.Tensor:
        kwargs = attention(image_rotary_emb, attention_mask, joint_attention_kwargs)
        return single(ops, self, hidden_states, temb.unbind(1), flux_mlp, **kwargs)

    return forward


def attention(tables, mask: torch.Tensor | None, kwargs: dict | None) -> dict:
    """The attention's arguments; its mask is `[B, 1, N, N]`, of the pairs of tokens that are both there."""
    if mask is not None:
        mask = mask[:, None, None, :] * mask[:, None, :, None]
    return (kwargs or {}) | {"image_rotary_emb": tables, "attention_mask": mask}
