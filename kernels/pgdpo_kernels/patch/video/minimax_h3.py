"""MiniMax-H3: picture, sound and text in one sequence, a modulation for each row; q and k are turned in halves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.transformers.transformer_minimax_h3 import (
    MiniMaxH3AdaLayerNormModulation,
    MiniMaxH3AttnProcessor,
    MiniMaxH3TransformerBlock,
    _apply_rotary_emb,
)
from torch import nn

from ..attention import FusedProcessor, heads_of
from ..replace import Ops, Replacement, of_blocks, promoted
from ..residual import Residual

# As in diffusers 0.40 to 0.42.1
SOURCES = {
    MiniMaxH3TransformerBlock.forward: "ca6d9ca44871d0ed",
    MiniMaxH3AdaLayerNormModulation.forward: "d628011585c1abbc",
    MiniMaxH3AttnProcessor.__call__: "0db0e6aa98d226a2",
    _apply_rotary_emb: "897848a7dac3aed2",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {MiniMaxH3TransformerBlock: block_forward(ops)}, (MiniMaxH3AttnProcessor,)
    return of_blocks(model, "transformer_blocks", ops, forwards, "attn", FusedMiniMaxH3AttnProcessor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: MiniMaxH3TransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        adaln_indices: torch.Tensor,  # [N], of the rows of the modulation
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        vectors = (x.index_select(0, adaln_indices).unsqueeze(0) for x in self.adaln_proj(temb))
        shift, scale, gate, ff_shift, ff_scale, ff_gate = vectors
        stream = Residual(ops, promoted(hidden_states, gate))
        stream.add(self.attn(stream.normed(self.norm1, scale, shift), rotary_emb, attention_mask), gate)
        stream.add(self.ff(stream.normed(self.norm2, ff_scale, ff_shift)), ff_gate)
        return stream.total()

    return forward


class FusedMiniMaxH3AttnProcessor(FusedProcessor):
    """`MiniMaxH3AttnProcessor`: the norms; the rotation, of a part of each head, is diffusers' own."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), None)
        if rotary_emb is not None:
            heads = (x.unflatten(2, (heads_of(attn, x), -1)) for x in (query, key))
            query, key = (_apply_rotary_emb(x, *rotary_emb).flatten(2) for x in heads)
        hidden_states = self.attend(attn, query, key, value, attention_mask)
        return attn.to_out[1](attn.to_out[0](hidden_states))
