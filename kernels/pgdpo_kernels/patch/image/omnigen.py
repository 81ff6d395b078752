"""OmniGen: the blocks of a language model, with RMS norms and without modulation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_omnigen import OmniGenBlock
from torch import nn

from ..plain import plain
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.38 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    OmniGenBlock.forward: "f4dcb32c36ecd88e",
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    """Its attention norms nothing and turns halves of heads: it keeps its processor."""
    return of_blocks(model, "layers", ops, {OmniGenBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: OmniGenBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: torch.Tensor,
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.self_attn(
                hidden_states=normed,
                encoder_hidden_states=normed,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
            )

        halves = (self.input_layernorm, attend), (self.post_attention_layernorm, self.mlp)
        return plain(ops, hidden_states, *halves)

    return forward
