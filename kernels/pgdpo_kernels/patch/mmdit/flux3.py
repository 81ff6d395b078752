"""FLUX.3: blocks of one kind of tokens, then blocks of all, with a modulation of each token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux3 import (
    Flux3AttnProcessor,
    Flux3ModeTransformerBlock,
    Flux3SingleTransformerBlock,
    _get_qkv_projections,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks
from .joint import enter

# As in diffusers 0.42 and 0.42.1
SOURCES = {
    Flux3ModeTransformerBlock.forward: "a49d367f967fde39",
    Flux3SingleTransformerBlock.forward: "92269bb072da8335",
    Flux3AttnProcessor.__call__: "d7f5f2420b33fc42",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        Flux3ModeTransformerBlock: mode_forward(ops),
        Flux3SingleTransformerBlock: single_forward(ops),
    }
    stacks = ("txt_mode_blocks", *(f"mode_blocks.{mode}" for mode in model.mode_blocks))
    return [
        item
        for stack in (*stacks, "single_transformer_blocks")
        for item in of_blocks(
            model, stack, ops, forwards, "attn", FusedFlux3AttnProcessor, (Flux3AttnProcessor,)
        )
    ]


def mode_forward(ops: Ops) -> Callable:
    def forward(
        self: Flux3ModeTransformerBlock,
        hidden_states: torch.Tensor,
        temb_mod: torch.Tensor,  # [B, N, 3 D]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        modulation = temb_mod.chunk(3, dim=-1)
        hidden_states, normed = enter(ops, hidden_states, modulation, self.norm)
        branch = self.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb) + self.ff(normed)
        return ops.gate_residual(hidden_states, branch, modulation[2])

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: Flux3SingleTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb_mod: torch.Tensor,  # [B, N, 3 D]
        temb_mod_context: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.shape[1]
        own, context = temb_mod.chunk(3, dim=-1), temb_mod_context.chunk(3, dim=-1)
        hidden_states, normed = enter(ops, hidden_states, own, self.norm)
        encoder_hidden_states, text_normed = enter(ops, encoder_hidden_states, context, self.norm)
        normed = torch.cat([text_normed, normed], dim=1)
        branch = self.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb) + self.ff(normed)
        return (
            ops.gate_residual(encoder_hidden_states, branch[:, :text], context[2]),
            ops.gate_residual(hidden_states, branch[:, text:], own[2]),
        )

    return forward


class FusedFlux3AttnProcessor(FusedProcessor):
    """`Flux3AttnProcessor`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        query, key, value = _get_qkv_projections(attn, hidden_states)
        tables = image_rotary_emb and tuple(table.to(query.device) for table in image_rotary_emb)
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), tables)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
