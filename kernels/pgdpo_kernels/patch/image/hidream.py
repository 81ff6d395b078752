"""HiDream: dual and single blocks, q and k normed over the full width, and tables of 2 x 2 matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_hidream_image import (
    HiDreamAttnProcessor,
    HiDreamImageEmbedND,
    HiDreamImageSingleTransformerBlock,
    HiDreamImageTransformerBlock,
    apply_rope,
    rope,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Forward, Ops, Processor, Replacement, Unsupported, promoted

# As in diffusers 0.38 to 0.42.1; `rope` chooses its dtype in other words since 0.39
SOURCES = {
    HiDreamImageTransformerBlock.forward: "7850cc61f9716cee",
    HiDreamImageSingleTransformerBlock.forward: "d0b888c617e65978",
    HiDreamAttnProcessor.__call__: "e7dd03561b7c5725",
    HiDreamImageEmbedND.forward: "31bad1af7b46a04f",
    apply_rope: "64bb8d5b08ed4070",
    rope: ("734284066fc8911b", "18b1d966ddf4347e"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        HiDreamImageTransformerBlock: dual_forward(ops),
        HiDreamImageSingleTransformerBlock: single_forward(ops),
    }
    found: list[Replacement] = []
    if ops.in_attention:
        head = model.config.attention_head_dim
        found.append(Forward(model.pe_embedder, "pe_embedder", half_tables(head)))
    for stack in ("double_stream_blocks", "single_stream_blocks"):
        for index, wrapper in enumerate(getattr(model, stack)):
            block, path = wrapper.block, f"{stack}.{index}.block"
            if type(block) not in forwards:
                raise Unsupported(f"{path} is a {type(block).__name__}")
            if ops.in_blocks:
                forward = forwards[type(block)]
                found.append(Forward(block, path, forward))
            if ops.in_attention:
                processor, known = FusedHiDreamAttnProcessor(ops), (HiDreamAttnProcessor,)
                found.append(Processor(block.attn1, f"{path}.attn1", processor, known))
    return found


def half_tables(head: int) -> Callable:
    def forward(self: HiDreamImageEmbedND, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin `[B, N, 1, head / 2]`; where they turn a part of the head, 1 and 0 for the rest."""
        matrices = type(self).forward(self, ids)
        missing = head // 2 - matrices.shape[-3]
        cos, sin = (F.pad(matrices[..., row, 0], (0, missing), value=1 - row) for row in (0, 1))
        return cos.contiguous(), sin.contiguous()

    return forward


def dual_forward(ops: Ops) -> Callable:
    def forward(
        self: HiDreamImageTransformerBlock,
        hidden_states: torch.Tensor,
        hidden_states_masks: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.adaLN_modulation(temb).chunk(12, dim=-1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = vectors[:6]
        text_shift, text_scale, text_gate, text_ff_shift, text_ff_scale, text_ff_gate = vectors[6:]
        hidden_states = promoted(hidden_states, gate)
        encoder_hidden_states = promoted(encoder_hidden_states, text_gate)
        branch, text_branch = self.attn1(
            ops.norm_modulate(hidden_states, scale, shift, eps=self.norm1_i.eps),
            hidden_states_masks,
            ops.norm_modulate(encoder_hidden_states, text_scale, text_shift, eps=self.norm1_t.eps),
            image_rotary_emb=image_rotary_emb,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, eps=self.norm3_i.eps
        )
        encoder_hidden_states, text_normed = ops.gate_residual_norm_modulate(
            encoder_hidden_states,
            text_branch,
            text_gate,
            text_ff_scale,
            text_ff_shift,
            eps=self.norm3_t.eps,
        )
        return (
            ops.gate_residual(hidden_states, self.ff_i(normed), ff_gate),
            ops.gate_residual(encoder_hidden_states, self.ff_t(text_normed), text_ff_gate),
        )

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: HiDreamImageSingleTransformerBlock,
        hidden_states: torch.Tensor,
        hidden_states_masks: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        image_rotary_emb: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        vectors = self.adaLN_modulation(temb).chunk(6, dim=-1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = vectors
        hidden_states = promoted(hidden_states, gate)
        branch = self.attn1(
            ops.norm_modulate(hidden_states, scale, shift, eps=self.norm1_i.eps),
            hidden_states_masks,
            image_rotary_emb=image_rotary_emb,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, eps=self.norm3_i.eps
        )
        return ops.gate_residual(hidden_states, self.ff_i(normed), ff_gate)

    return forward


class FusedHiDreamAttnProcessor(FusedProcessor):
    """`HiDreamAttnProcessor`, on tables of `half_tables`."""

    _attention_backend = "native"  # it calls torch's attention, whatever the backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        hidden_states_masks: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        *args,
        **kwargs,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        image = hidden_states.shape[1]
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        tables = tuple(table[:, :image] for table in image_rotary_emb)
        query, key = self.normed(attn, query, key, "rms_full", (attn.q_rms_norm, attn.k_rms_norm), tables)
        if hidden_states_masks is not None:
            key = key * hidden_states_masks.unsqueeze(-1)
        if attn.single:
            return attn.to_out(self.attend(attn, query, key, value))

        text_query, text_key = attn.to_q_t(encoder_hidden_states), attn.to_k_t(encoder_hidden_states)
        tables = tuple(table[:, image:] for table in image_rotary_emb)
        norms = (attn.q_rms_norm_t, attn.k_rms_norm_t)
        text_query, text_key = self.normed(attn, text_query, text_key, "rms_full", norms, tables)
        query, key = torch.cat([query, text_query], dim=1), torch.cat([key, text_key], dim=1)
        value = torch.cat([value, attn.to_v_t(encoder_hidden_states)], dim=1)
        hidden_states = self.attend(attn, query, key, value)
        return attn.to_out(hidden_states[:, :image]), attn.to_out_t(hidden_states[:, image:])
