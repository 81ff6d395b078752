"""Sana: blocks modulated by a table and an embedding; linear attention, normed over the full width in Sana Sprint."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.sana_transformer import SanaTransformerBlock
from torch import nn

from ..attention import FusedProcessor
from ..norms import affine
from ..replace import Forward, Ops, Processor, Replacement, Unsupported, promoted

# As in diffusers 0.38 to 0.42.1; RMSNorm in other words since 0.41
SOURCES = {
    SanaTransformerBlock.forward: "9a3e8db8963efea2",
    SanaLinearAttnProcessor2_0.__call__: "e75ae1143d56a89d",
    RMSNorm.forward: ("fa91ca74b4badaaf", "ab9075d036873ac9"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found: list[Replacement] = []
    forward, known = block_forward(ops), (SanaLinearAttnProcessor2_0,)
    for index, block in enumerate(model.transformer_blocks):
        path = f"transformer_blocks.{index}"
        if type(block) is not SanaTransformerBlock:
            raise Unsupported(f"{path} is a {type(block).__name__}")
        if ops.in_blocks:
            found.append(Forward(block, path, forward))
        if ops.in_attention and block.attn1.norm_q is not None:
            processor = FusedSanaLinearAttnProcessor(ops)
            found.append(Processor(block.attn1, f"{path}.attn1", processor, known))
    return found


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: SanaTransformerBlock,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,  # [B, 6 D]
        height: int | None = None,
        width: int | None = None,
    ) -> torch.Tensor:
        tables = self.scale_shift_table.unbind(0)
        embeddings = timestep.reshape(hidden_states.shape[0], 6, -1).unbind(1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = zip(tables, embeddings, strict=True)

        branch = self.attn1(ops.norm_modulate(hidden_states, scale, shift, **affine(self.norm1)))
        hidden_states = promoted(hidden_states, self.scale_shift_table, timestep)
        hidden_states = ops.gate_residual(hidden_states, branch, gate)
        branch = self.attn2(
            hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, None, ff_scale, ff_shift, **affine(self.norm2)
        )
        branch = self.ff(normed.unflatten(1, (height, width)).permute(0, 3, 1, 2))  # of convolutions
        return ops.gate_residual(hidden_states, branch.flatten(2).transpose(1, 2), ff_gate)

    return forward


class FusedSanaLinearAttnProcessor(FusedProcessor):
    """`SanaLinearAttnProcessor2_0` for self-attention with norms."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = hidden_states.dtype
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = self.normed(attn, query, key, "rms_full", (attn.norm_q, attn.norm_k), None)
        query, key, value = (
            x.transpose(1, 2).unflatten(1, (attn.heads, -1)) for x in (F.relu(query), F.relu(key), value)
        )
        # The row of ones below the values sums the weights.
        sums = F.pad(value.float(), (0, 0, 0, 1), value=1.0) @ key.float().transpose(2, 3) @ query.float()
        hidden_states = sums[:, :, :-1] / (sums[:, :, -1:] + 1e-15)
        hidden_states = hidden_states.flatten(1, 2).transpose(1, 2).to(dtype)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        return hidden_states.clip(-65504, 65504) if dtype == torch.float16 else hidden_states
