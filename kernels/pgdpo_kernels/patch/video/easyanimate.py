"""EasyAnimate: CogVideoX's norms for two streams; text projections of its own in the first blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_easyanimate import (
    EasyAnimateAttnProcessor2_0,
    EasyAnimateLayerNormZero,
    EasyAnimateTransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks, promoted
from .cogvideox import affine, modulation

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    EasyAnimateTransformerBlock.forward: "44dbca7c745fa96e",
    EasyAnimateLayerNormZero.forward: "b33a94cd3501c770",
    FP32LayerNorm.forward: "fb3a8812f75a9d83",
    EasyAnimateAttnProcessor2_0.__call__: "7331664cbe951a51",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {EasyAnimateTransformerBlock: block_forward(ops)}, (EasyAnimateAttnProcessor2_0,)
    return of_blocks(
        model, "transformer_blocks", ops, forwards, "attn1", FusedEasyAnimateAttnProcessor, known
    )


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: EasyAnimateTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shift, scale, gate, text_shift, text_scale, text_gate = modulation(self.norm1, temb)
        norm = affine(self.norm1)
        hidden_states = promoted(hidden_states, gate)
        encoder_hidden_states = promoted(encoder_hidden_states, text_gate)
        branch, text_branch = self.attn1(
            hidden_states=ops.norm_modulate(hidden_states, scale, shift, **norm),
            encoder_hidden_states=ops.norm_modulate(encoder_hidden_states, text_scale, text_shift, **norm),
            image_rotary_emb=image_rotary_emb,
        )

        shift, scale, ff_gate, text_shift, text_scale, text_ff_gate = modulation(self.norm2, temb)
        norm = affine(self.norm2)
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, scale, shift, **norm
        )
        encoder_hidden_states, text_normed = ops.gate_residual_norm_modulate(
            encoder_hidden_states, text_branch, text_gate, text_scale, text_shift, **norm
        )
        branch = self.ff(normed)
        text_branch = self.ff(text_normed) if self.txt_ff is None else self.txt_ff(text_normed)
        if self.norm3 is not None:
            norm = {"weight": self.norm3.weight, "bias": self.norm3.bias, "eps": self.norm3.eps}
            branch, text_branch = (ops.norm_modulate(x, **norm) for x in (branch, text_branch))
        return (
            ops.gate_residual(hidden_states, branch, ff_gate),
            ops.gate_residual(encoder_hidden_states, text_branch, text_ff_gate),
        )

    return forward


class FusedEasyAnimateAttnProcessor(FusedProcessor):
    """`EasyAnimateAttnProcessor2_0`; the text comes first."""

    _attention_backend = "native"  # it calls torch's attention, whatever the backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text, single = encoder_hidden_states.shape[1], attn.add_q_proj is None
        if single:
            hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        tables = image_rotary_emb and tuple(table.to(query.device) for table in image_rotary_emb)
        norms, start = (attn.norm_q, attn.norm_k), text if single else 0
        query, key = self.normed(attn, query, key, "layer_head", norms, tables, rope_start=start)
        if not single:
            text_query = attn.add_q_proj(encoder_hidden_states)
            text_key = attn.add_k_proj(encoder_hidden_states)
            norms = (attn.norm_added_q, attn.norm_added_k)
            text_query, text_key = self.normed(attn, text_query, text_key, "layer_head", norms, None)
            query, key = torch.cat([text_query, query], dim=1), torch.cat([text_key, key], dim=1)
            value = torch.cat([attn.add_v_proj(encoder_hidden_states), value], dim=1)

        hidden_states = self.attend(attn, query, key, value, attention_mask)
        encoder_hidden_states, hidden_states = hidden_states[:, :text], hidden_states[:, text:]
        if getattr(attn, "to_out", None) is not None:
            hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if getattr(attn, "to_add_out", None) is not None:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states
