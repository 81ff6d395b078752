"""Qwen-Image 2.1: one stream of text and images, one modulation for all blocks, a second one for what is given."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_qwenimage21 import (
    QwenImage21AttnProcessor,
    QwenImage21Rope,
    QwenImage21TransformerBlock,
    _qwenimage21_prepare_qkv,
    _select_modulation_rows,
    apply_rotary_emb_qwen,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Forward, Ops, Replacement, of_blocks, promoted
from .joint import clipped
from .qwenimage import side_by_side

# As in diffusers 0.41 to 0.42.1
SOURCES = {
    QwenImage21TransformerBlock.forward: "4d00610eb23125f4",
    QwenImage21TransformerBlock._modulate: "c0ca04b4ae860209",
    _select_modulation_rows: "0bb95ec8f022697b",
    QwenImage21AttnProcessor.__call__: "d1109a1d51398114",
    _qwenimage21_prepare_qkv: ("9ee3a2cadb728874", "e5728d47e6b7f1fc"),
    apply_rotary_emb_qwen: "62c3cf93c5e4d4eb",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = [Forward(model.pos_embed, "pos_embed", real_table)] if ops.in_attention else []
    forwards, known = {QwenImage21TransformerBlock: block_forward(ops)}, (QwenImage21AttnProcessor,)
    return found + of_blocks(
        model, "transformer_blocks", ops, forwards, "attn", FusedQwen21AttnProcessor, known
    )


def real_table(self: QwenImage21Rope, *args, **kwargs) -> torch.Tensor:
    """cos and sin side by side, `[N, head size]`."""
    return side_by_side(type(self).forward(self, *args, **kwargs))


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: QwenImage21TransformerBlock,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,  # [B, 4 D], or with a last row [1, 4 D] for the tokens that are given
        rotary_emb: torch.Tensor | None = None,
        attention_mask: object | None = None,
        target_token_mask: torch.Tensor | None = None,
        layer_cache: object | None = None,
        kv_cache_mode: str | None = None,
        cache_write_slice: slice | None = None,
        segments: list[tuple[int, int, bool]] | None = None,
        key_valid: torch.Tensor | None = None,
    ) -> torch.Tensor:
        scale, gate, ff_scale, ff_gate = modulation.chunk(4, dim=-1)
        scale, gate, ff_scale, ff_gate = (
            _select_modulation_rows(vectors, target_token_mask)
            for vectors in (scale, gate.tanh(), ff_scale, ff_gate.tanh())
        )
        hidden_states = promoted(hidden_states, gate)
        branch = self.attn(
            hidden_states=ops.norm_modulate(hidden_states, scale, eps=self.img_norm1.eps),
            attention_mask=attention_mask,
            rotary_emb=rotary_emb,
            layer_cache=layer_cache,
            kv_cache_mode=kv_cache_mode,
            cache_write_slice=cache_write_slice,
            segments=segments,
            key_valid=key_valid,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, eps=self.img_norm2.eps
        )
        return clipped(ops.gate_residual(hidden_states, self.img_mlp(normed), ff_gate))

    return forward


class FusedQwen21AttnProcessor(FusedProcessor, QwenImage21AttnProcessor):
    """`QwenImage21AttnProcessor` on the table of `real_table`; cache and causal blocks are its own code."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        attention_mask: object | None = None,
        rotary_emb: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        query, key = attn.to_q(hidden_states), attn.to_k(hidden_states)
        tables = None if rotary_emb is None else rotary_emb.chunk(2, dim=-1)
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), tables)
        done = SimpleNamespace(
            to_q=lambda _: query,
            to_k=lambda _: key,
            norm_q=lambda x: x,
            norm_k=lambda x: x,
            to_v=attn.to_v,
            to_out=attn.to_out,
            heads=attn.heads,
            inner_dim=attn.inner_dim,
        )
        return super().__call__(done, hidden_states, attention_mask, **kwargs)
