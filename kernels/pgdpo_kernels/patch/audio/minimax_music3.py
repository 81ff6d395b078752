"""MiniMax Music 3: LayerNorms without modulation; its attention norms nothing and turns a part of each head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_minimax_music3 import MiniMaxMusic3TransformerBlock
from torch import nn

from ..plain import plain
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.40 to 0.42.1
SOURCES = {MiniMaxMusic3TransformerBlock.forward: "c856acf9a3ce9953"}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    return of_blocks(model, "transformer_blocks", ops, {MiniMaxMusic3TransformerBlock: block_forward(ops)})


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: MiniMaxMusic3TransformerBlock,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        def attend(normed: torch.Tensor) -> torch.Tensor:
            return self.attn(normed, rotary_emb)

        def feed_forward(normed: torch.Tensor) -> torch.Tensor:
            values, gates = self.ff_in(normed).chunk(2, dim=-1)
            return self.ff_out(values * F.silu(gates))

        return plain(ops, hidden_states, (self.norm1, attend), (self.norm2, feed_forward))

    return forward
