"""Stable Audio: LayerNorms without modulation; some of its keys are fewer heads, a part of each is turned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.stable_audio_transformer import StableAudioDiTBlock
from torch import nn

from ..plain import plain
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.38 to 0.42.1
SOURCES = {StableAudioDiTBlock.forward: "89362ef537b7c0bc"}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "transformer_blocks", ops, {StableAudioDiTBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: StableAudioDiTBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        rotary_embedding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attn1(normed, attention_mask=attention_mask, rotary_emb=rotary_embedding)

        def cross_attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attn2(
                normed, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
            )

        halves = (self.norm1, attend), (self.norm2, cross_attend), (self.norm3, self.ff)
        return plain(ops, hidden_states, *halves)

    return forward
