"""Stable Diffusion 3 and 3.5: dual blocks without a rotation, in 3.5-medium with a second attention of the image."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from diffusers.models.attention import JointTransformerBlock, _chunked_feed_forward
from diffusers.models.attention_processor import FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    RMSNorm,
    SD35AdaLayerNormZeroX,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Processor, Replacement, of_blocks
from .joint import enter, leave, zero_modulation

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    JointTransformerBlock.forward: "9dd8f9decdd27284",
    JointAttnProcessor2_0.__call__: "392b6bf56c8505d1",
    FusedJointAttnProcessor2_0.__call__: "38ab0a3e81c938e3",
    AdaLayerNormZero.forward: "93374820c014f812",
    AdaLayerNormContinuous.forward: "da3e50ebcd024fc2",
    SD35AdaLayerNormZeroX.forward: "447682c6b939c97a",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    stack, known = "transformer_blocks", (JointAttnProcessor2_0,)
    found = of_blocks(model, stack, ops, {JointTransformerBlock: block_forward(ops)})
    attentions = {
        f"{stack}.{index}.{name}": getattr(block, name)
        for index, block in enumerate(model.transformer_blocks)
        for name in ("attn", "attn2")
    }
    return found + [
        Processor(attn, path, FusedNormJointAttnProcessor(ops), known)
        for path, attn in attentions.items()
        if ops.in_attention and has_norms(attn)
    ]


def has_norms(attn: nn.Module | None) -> bool:
    """Whether q and k are normed: not in SD 3.0, nor by the processor for fused projections."""
    return (
        attn is not None
        and isinstance(attn.norm_q, RMSNorm)
        and not isinstance(attn.processor, FusedJointAttnProcessor2_0)
    )


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: JointTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        joint_attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        kwargs = joint_attention_kwargs or {}
        own = zero_modulation(self.norm1, temb, 9 if self.use_dual_attention else 6)
        hidden_states, normed = enter(ops, hidden_states, own, self.norm1)
        second = None
        if self.use_dual_attention:
            shift, scale, second_gate = own[6:]
            second = ops.norm_modulate(hidden_states, scale, shift, eps=self.norm1.norm.eps)
        encoder_hidden_states, text_normed, context = enter_text(ops, self, encoder_hidden_states, temb)

        branch, text_branch = self.attn(hidden_states=normed, encoder_hidden_states=text_normed, **kwargs)
        own = own[:6]
        if second is not None:
            hidden_states = ops.gate_residual(hidden_states, branch, own[2])
            branch, own = self.attn2(hidden_states=second, **kwargs), (*own[:2], second_gate, *own[3:])
        hidden_states = leave(ops, hidden_states, branch, own, self.norm2, in_chunks(self, self.ff))
        if context is None:
            return None, hidden_states
        feed_forward = in_chunks(self, self.ff_context)
        encoder_hidden_states = leave(
            ops, encoder_hidden_states, text_branch, context, self.norm2_context, feed_forward
        )
        return encoder_hidden_states, hidden_states

    return forward


def enter_text(
    ops: Ops, block: JointTransformerBlock, encoder_hidden_states: torch.Tensor, temb: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """The stream, its modulated norm and its modulation: None in the last block, which drops the text."""
    norm = block.norm1_context
    if not block.context_pre_only:
        context = zero_modulation(norm, temb)
        return *enter(ops, encoder_hidden_states, context, norm), context
    scale, shift = norm.linear(norm.silu(temb).to(encoder_hidden_states.dtype)).chunk(2, dim=1)
    normed = ops.norm_modulate(encoder_hidden_states, scale, shift, eps=norm.norm.eps)
    return encoder_hidden_states, normed, None


def in_chunks(block: JointTransformerBlock, feed_forward: nn.Module) -> Callable:
    if block._chunk_size is None:
        return feed_forward
    return functools.partial(
        _chunked_feed_forward, feed_forward, chunk_dim=block._chunk_dim, chunk_size=block._chunk_size
    )


class FusedNormJointAttnProcessor(FusedProcessor):
    """`JointAttnProcessor2_0`, the image's tokens first, through diffusers' dispatcher."""

    _attention_backend = "native"  # it calls torch's attention, whatever the backend

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # not read, as there
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden_states.shape[1]
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key = self.normed(attn, query, key, "rms_head", (attn.norm_q, attn.norm_k), None)
        if encoder_hidden_states is not None:
            text_query = attn.add_q_proj(encoder_hidden_states)
            text_key = attn.add_k_proj(encoder_hidden_states)
            norms = (attn.norm_added_q, attn.norm_added_k)
            text_query, text_key = self.normed(attn, text_query, text_key, "rms_head", norms, None)
            query, key = torch.cat([query, text_query], dim=1), torch.cat([key, text_key], dim=1)
            value = torch.cat([value, attn.add_v_proj(encoder_hidden_states)], dim=1)

        hidden_states = self.attend(attn, query, key, value)
        text_branch = hidden_states[:, tokens:]
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states[:, :tokens]))
        if encoder_hidden_states is None:
            return hidden_states
        return hidden_states, text_branch if attn.context_pre_only else attn.to_add_out(text_branch)
