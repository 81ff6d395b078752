"""Mochi: RMS norms without weights on both sides of every branch, gates through tanh, a table of rotations per head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import MochiAttention, MochiAttnProcessor2_0
from diffusers.models.normalization import MochiRMSNorm, RMSNorm
from diffusers.models.transformers.transformer_mochi import (
    MochiLayerNormContinuous,
    MochiModulatedRMSNorm,
    MochiRMSNormZero,
    MochiTransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    MochiTransformerBlock.forward: "c12382d76d66dd9f",
    MochiRMSNormZero.forward: "4086229fe17c3c6f",
    MochiModulatedRMSNorm.forward: ("4953cce8f0447c6e", "4fb91a08ddeffcc0"),
    MochiLayerNormContinuous.forward: "e981bdb1beac21cc",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
    MochiRMSNorm.forward: ("db65c97da287fe56", "725bc2740f3bb790"),
    MochiAttnProcessor2_0.__call__: "56050b08e51df642",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {MochiTransformerBlock: block_forward(ops)}, (MochiAttnProcessor2_0,)
    return of_blocks(model, "transformer_blocks", ops, forwards, "attn1", FusedMochiAttnProcessor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: MochiTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        normed, *vectors = entered(ops, self.norm1, hidden_states, temb)
        if self.context_pre_only:  # of the text, the last block takes keys and values alone
            scale = self.norm1_context.linear_1(self.norm1_context.silu(temb).to(encoder_hidden_states.dtype))
            text_normed = rms(ops, self.norm1_context.norm, encoder_hidden_states, scale)
        else:
            text_normed, *text_vectors = entered(ops, self.norm1_context, encoder_hidden_states, temb)
        branch, text_branch = self.attn1(
            hidden_states=normed,
            encoder_hidden_states=text_normed,
            image_rotary_emb=image_rotary_emb,
            attention_mask=encoder_attention_mask,
        )
        norms = (self.norm2, self.norm3, self.norm4)
        hidden_states = left(ops, norms, hidden_states, branch, vectors, self.ff)
        if not self.context_pre_only:
            norms = (self.norm2_context, self.norm3_context, self.norm4_context)
            encoder_hidden_states = left(
                ops, norms, encoder_hidden_states, text_branch, text_vectors, self.ff_context
            )
        return hidden_states, encoder_hidden_states

    return forward


def rms(
    ops: Ops, norm: MochiModulatedRMSNorm, x: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    return ops.norm_modulate(x, None if scale is None else scale.float(), norm="rms", eps=norm.norm.eps)


def entered(
    ops: Ops, norm: MochiRMSNormZero, x: torch.Tensor, temb: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The norm before attention; attention's gate, feed-forward's scale and gate, fp32 `[B, D]` each."""
    scale, gate, ff_scale, ff_gate = norm.linear(norm.silu(temb)).chunk(4, dim=1)
    return rms(ops, norm, x, scale), torch.tanh(gate).float(), ff_scale.float(), torch.tanh(ff_gate).float()


def left(
    ops: Ops,
    norms: tuple[MochiModulatedRMSNorm, ...],
    x: torch.Tensor,
    branch: torch.Tensor,
    vectors: list[torch.Tensor],
    feed_forward: nn.Module,
) -> torch.Tensor:
    """The residual of attention and feed-forward, each branch normed before its gate."""
    gate, ff_scale, ff_gate = vectors
    x, normed = ops.gate_residual_norm_modulate(
        x, rms(ops, norms[0], branch), gate, ff_scale, norm="rms", eps=norms[1].norm.eps
    )
    return ops.gate_residual(x, rms(ops, norms[2], feed_forward(normed)), ff_gate)


class FusedMochiAttnProcessor(FusedProcessor):
    """`MochiAttnProcessor2_0`. Where the frequencies are trained, their gradient needs diffusers' rotation."""

    _attention_backend = "native"  # it calls torch's attention, whatever the backend

    def __call__(
        self,
        attn: MochiAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,  # [B, text]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # [N, heads, head size / 2] each
    ) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        trained = image_rotary_emb is not None and image_rotary_emb[0].requires_grad
        fixed = image_rotary_emb is not None and not trained
        tables = tuple(table.unsqueeze(0) for table in image_rotary_emb) if fixed else None
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), tables)
        if trained:
            query, key = (rotated(x, attn.heads, *image_rotary_emb) for x in (query, key))
        text_query, text_key = attn.add_q_proj(encoder_hidden_states), attn.add_k_proj(encoder_hidden_states)
        norms = (attn.norm_added_q, attn.norm_added_k)
        text_query, text_key = self.normed(attn, text_query, text_key, "rms_head", norms, None)
        text = (text_query, text_key, attn.add_v_proj(encoder_hidden_states))

        outputs = []
        for index, mask in enumerate(attention_mask):  # padded tokens take no part, and come back as zeros
            valid = mask.flatten().nonzero().flatten()
            joint = (
                torch.cat([x[index : index + 1], y[index : index + 1, valid]], dim=1)
                for x, y in zip((query, key, value), text, strict=True)
            )
            padding = (0, 0, 0, encoder_hidden_states.shape[1] - len(valid))
            outputs.append(F.pad(self.attend(attn, *joint), padding))
        hidden_states, encoder_hidden_states = torch.cat(outputs).split(
            [hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1
        )
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if hasattr(attn, "to_add_out"):
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


def rotated(x: torch.Tensor, heads: int, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Neighbours `[B, N, D]` turned by `[N, heads, head size / 2]`, which may want gradients."""
    even, odd = x.unflatten(2, (heads, -1, 2)).float().unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).to(x.dtype).flatten(2)
