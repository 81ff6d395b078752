"""Sana-Video: modulated blocks, and linear attention, which wants q and k both turned and not."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_sana_video import (
    SanaLinearAttnProcessor3_0,
    SanaVideoTransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..norms import affine
from ..replace import Ops, Replacement, of_blocks, promoted
from ..residual import Residual

# As in diffusers 0.38 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    SanaVideoTransformerBlock.forward: "fdaecc8873dd91d4",
    SanaLinearAttnProcessor3_0.__call__: "e6e99dedf1a8cd46",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {SanaVideoTransformerBlock: block_forward(ops)}, (SanaLinearAttnProcessor3_0,)
    processor = FusedSanaVideoAttnProcessor
    return of_blocks(model, "transformer_blocks", ops, forwards, "attn1", processor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: SanaVideoTransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,  # [B, 1 or N, 6 D]
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        table = self.scale_shift_table
        embeddings = timestep.unflatten(2, (6, -1)).unbind(2)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = zip(table.unbind(0), embeddings, strict=True)

        normed = ops.norm_modulate(hidden_states, scale, shift, **affine(self.norm1))
        stream = Residual(ops, promoted(hidden_states, table, timestep))
        stream.add(self.attn1(normed, rotary_emb=rotary_emb), gate)
        if self.attn2 is not None:
            text = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": encoder_attention_mask}
            stream.add(self.attn2(stream.total(), **text))
        normed = stream.normed(self.norm2, ff_scale, ff_shift)
        stream.add(self.ff(normed.unflatten(1, (frames, height, width))).flatten(1, 3), ff_gate)
        return stream.total()

    return forward


class FusedSanaVideoAttnProcessor(FusedProcessor):
    """`SanaLinearAttnProcessor3_0` for self-attention: norm and rotation are apart, with a ReLU between."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if attn.norm_q is not None:
            query, key = self.normed(attn, query, key, "rms_full", (attn.norm_q, attn.norm_k), None)
        query, key = F.relu(query), F.relu(key)
        turned = self.normed(attn, query, key, "none", (None, None), rotary_emb)

        of_heads = (x.transpose(1, 2).unflatten(1, (attn.heads, -1)) for x in (query, key, *turned, value))
        query, key, turned_query, turned_key, value = of_heads  # [B, H, C, N]
        weights = key.sum(dim=-1, keepdim=True).transpose(2, 3) @ query + 1e-15
        scores = value.float() @ turned_key.float().transpose(2, 3)
        branch = scores @ turned_query.float() * (1 / weights)
        branch = branch.flatten(1, 2).transpose(1, 2).to(hidden_states.dtype)
        return attn.to_out[1](attn.to_out[0](branch))
