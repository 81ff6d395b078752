"""Kandinsky 6: text blocks, blocks of picture and sound side by side, and those of its super-resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers import transformer_kandinsky6 as k6
from diffusers.models.transformers import transformer_kandinsky6_sr as sr
from torch import nn

from ..replace import Forward, Ops, Processor, Replacement, Unsupported, of_blocks
from .kandinsky5 import KandinskyProcessor, laid_out

# As in diffusers 0.42 and 0.42.1
SOURCES = {
    k6.Kandinsky6TransformerEncoderBlock.forward: "145f2f72f02efb00",
    k6.Kandinsky6FusedTransformerDecoderBlock.forward: "9b2c0e99e28098b9",
    k6.Kandinsky6Modulation.forward: "8c88d09b61a54d27",
    k6.Kandinsky6Attention.forward: "7cf3bc4153db181a",
    k6.Kandinsky6AttnProcessor.__call__: "8b6e143146cf8098",
    k6.Kandinsky6RoPE1D.forward: "74f54258f6ab39d7",
    k6.Kandinsky6RoPE3D.forward: "9de8592bd39953ad",
    k6.apply_scale_shift: "1f6e3e4d592a10fc",
    k6.apply_gate_sum: "6d15587ced232fa9",
    k6.apply_rotary: "469417fd2bd1864a",
    sr.Kandinsky6SRTransformerBlock.forward: "8169921368543f79",
    sr.Kandinsky6SRModulation.forward: "8c88d09b61a54d27",
    sr.Kandinsky6SRAttnProcessor.__call__: "047b50d0e7eb947d",
    sr.Kandinsky6SRRoPE3D.forward: "9de8592bd39953ad",
    sr.apply_scale_shift: "1f6e3e4d592a10fc",
    sr.apply_gate_sum: "6d15587ced232fa9",
    sr.apply_rotary: "469417fd2bd1864a",
    sr.nabla_block_mask: "7ea17020a72bdae3",
}
ATTENTIONS = (
    "video_dec_block.self_attention",
    "video_dec_block.cross_attention",
    "audio_dec_block.self_attention",
    "audio_dec_block.cross_attention",
    "va_cross_attention",
    "av_cross_attention",
)


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    ropes = [name for name, _ in model.named_children() if name.endswith("rope_embeddings")]
    found = [Forward(getattr(model, name), name, laid_out) for name in ropes if ops.in_attention]
    if isinstance(model, sr.Kandinsky6SRTransformer3DModel):
        forwards = {sr.Kandinsky6SRTransformerBlock: sr_forward(ops)}
        processor, known = FusedKandinsky6SRAttnProcessor, (sr.Kandinsky6SRAttnProcessor,)
        stack = "visual_transformer_blocks"
        return found + of_blocks(model, stack, ops, forwards, "self_attention", processor, known)
    forwards = {k6.Kandinsky6TransformerEncoderBlock: encoder_forward(ops)}
    processor, known = FusedKandinsky6AttnProcessor, (k6.Kandinsky6AttnProcessor,)
    for stack in ("video_text_transformer_blocks", "audio_text_transformer_blocks"):
        found += of_blocks(model, stack, ops, forwards, "attn", processor, known)
    for index, block in enumerate(model.visual_transformer_blocks):
        path = f"visual_transformer_blocks.{index}"
        if not isinstance(block, k6.Kandinsky6FusedTransformerDecoderBlock):
            raise Unsupported(f"{path} is a {type(block).__name__}")
        if ops.in_blocks:
            forward = fused_forward(ops)
            found.append(Forward(block, path, forward))
        if ops.in_attention:
            for name in ATTENTIONS:
                module = block.get_submodule(name)
                found.append(Processor(module, f"{path}.{name}", processor(ops), known))
    return found


def encoder_forward(ops: Ops) -> Callable:
    def forward(
        self: k6.Kandinsky6TransformerEncoderBlock,
        x: torch.Tensor,
        time_embed: torch.Tensor,
        rope: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (
            self.text_modulation(time_embed).float().chunk(6, -1)
        )
        normed = ops.norm_modulate(x, scale, shift, eps=self.attn_norm.eps)
        branch = self.attn(normed, rotary_emb=rope, attn_mask=attn_mask)
        x, normed = ops.gate_residual_norm_modulate(
            x, branch, gate, ff_scale, ff_shift, eps=self.feed_forward_norm.eps
        )
        return ops.gate_residual(x, self.feed_forward(normed), ff_gate)

    return forward


def sr_forward(ops: Ops) -> Callable:
    def forward(
        self: sr.Kandinsky6SRTransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: torch.Tensor,
        sparse_params: dict,
    ) -> torch.Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.visual_modulation(temb).float().chunk(6, -1)
        normed = ops.norm_modulate(hidden_states, scale, shift, eps=self.self_attention_norm.eps)
        branch = self.self_attention(normed, rotary_emb, sparse_params)
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, eps=self.feed_forward_norm.eps
        )
        return ops.gate_residual(hidden_states, self.feed_forward(normed), ff_gate)

    return forward


def fused_forward(ops: Ops) -> Callable:
    def forward(
        self: k6.Kandinsky6FusedTransformerDecoderBlock,
        vis: torch.Tensor | None,
        aud: torch.Tensor | None,
        text_v: torch.Tensor,
        text_a: torch.Tensor,
        time_embed: tuple[torch.Tensor, torch.Tensor],
        vis_rope: torch.Tensor | None,
        aud_rope: torch.Tensor | None,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        seen = heard = None
        if vis is not None:
            seen = attended(ops, self.video_dec_block, vis, text_v, time_embed[0], vis_rope, attn_mask)
        if aud is not None:
            heard = attended(ops, self.audio_dec_block, aud, text_a, time_embed[1], aud_rope, attn_mask)
        if vis is not None and aud is not None:
            seen, heard = crossed(ops, self, seen, heard, time_embed, (vis_rope, aud_rope))
        return fed(ops, self.video_dec_block, seen), fed(ops, self.audio_dec_block, heard)

    return forward


class Pending(NamedTuple):
    """A stream with a branch that is still to be added: the op that adds it also makes the next norm."""

    hidden: torch.Tensor  # [B, N, D]
    branch: torch.Tensor
    gate: torch.Tensor  # [B, D]
    normed: torch.Tensor  # what cross-attention saw, of which the other stream takes its keys and values
    feed_forward: tuple[torch.Tensor, ...]  # shift, scale and gate, [B, D] each


def attended(
    ops: Ops,
    block: k6.Kandinsky6TransformerDecoderBlock,
    x: torch.Tensor,
    text: torch.Tensor,
    temb: torch.Tensor,
    rope: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> Pending:
    """Self-attention, then cross-attention to the text."""
    vectors = block.visual_modulation(temb).float().chunk(9, -1)
    shift, scale, gate, cross_shift, cross_scale, cross_gate = vectors[:6]
    normed = ops.norm_modulate(x, scale, shift, eps=block.self_attention_norm.eps)
    branch = block.self_attention(normed, rotary_emb=rope)
    x, normed = ops.gate_residual_norm_modulate(
        x, branch, gate, cross_scale, cross_shift, eps=block.cross_attention_norm.eps
    )
    branch = block.cross_attention(normed, encoder_hidden_states=text, attn_mask=mask)
    return Pending(x, branch, cross_gate, normed, vectors[6:])


def crossed(
    ops: Ops,
    self: k6.Kandinsky6FusedTransformerDecoderBlock,
    seen: Pending,
    heard: Pending,
    time_embed: tuple[torch.Tensor, torch.Tensor],
    ropes: tuple[torch.Tensor, torch.Tensor],
) -> tuple[Pending, Pending]:
    """The picture attends to the sound and the sound to the picture."""
    own, other = (self.model_dim, self.model_dim_a), (self.model_dim_a, self.model_dim)
    of_gates = other if self.cross_gates else own
    tembs = time_embed if self.fix_modulation else time_embed[::-1]
    vectors = [
        modulation(temb).float().split([size, size, gate], dim=-1)
        for modulation, temb, size, gate in zip(
            (self.va_modulation, self.av_modulation), tembs, own, of_gates, strict=True
        )
    ]
    gates = [gate for _, _, gate in vectors]
    streams, eps = (seen, heard), (self.va_normalization.eps, self.av_normalization.eps)
    added = [
        ops.gate_residual_norm_modulate(x.hidden, x.branch, x.gate, scale, shift, eps=own_eps)
        for x, (shift, scale, _), own_eps in zip(streams, vectors, eps, strict=True)
    ]
    (vis, vis_normed), (aud, aud_normed) = added
    vis_rope, aud_rope = ropes if self.ca_rope else (None, None)
    vis_branch = self.va_cross_attention(
        vis_normed, encoder_hidden_states=heard.normed, rope_q=vis_rope, rope_kv=aud_rope
    )
    aud_branch = self.av_cross_attention(
        aud_normed, encoder_hidden_states=seen.normed, rope_q=aud_rope, rope_kv=vis_rope
    )
    vis_gate, aud_gate = gates[::-1] if self.cross_gates else gates
    return (
        seen._replace(hidden=vis, branch=vis_branch, gate=vis_gate),
        heard._replace(hidden=aud, branch=aud_branch, gate=aud_gate),
    )


def fed(ops: Ops, block: k6.Kandinsky6TransformerDecoderBlock, stream: Pending | None) -> torch.Tensor | None:
    """The pending branch, then feed-forward."""
    if stream is None:
        return None
    shift, scale, gate = stream.feed_forward
    x, normed = ops.gate_residual_norm_modulate(
        stream.hidden, stream.branch, stream.gate, scale, shift, eps=block.feed_forward_norm.eps
    )
    return ops.gate_residual(x, block.feed_forward(normed), gate)


class FusedKandinsky6AttnProcessor(KandinskyProcessor):
    """`Kandinsky6AttnProcessor`, on tables of `laid_out`."""

    def __call__(
        self,
        attn: k6.Kandinsky6Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
        rotary_emb_kv: torch.Tensor | None = None,  # self-attention's is `rotary_emb`
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is None:
            query, key = self.turned(attn, hidden_states, rotary_emb)
        else:
            query = self.turned_alone(attn, attn.to_query(hidden_states), attn.query_norm, rotary_emb)
            key = self.turned_alone(attn, attn.to_key(seen), attn.key_norm, rotary_emb_kv)
        return self.output(attn, seen, query, key, attn_mask, self._attention_backend)


class FusedKandinsky6SRAttnProcessor(KandinskyProcessor):
    """`Kandinsky6SRAttnProcessor`: always flex attention, on blocks that it picks from query and key."""

    def __call__(
        self,
        attn: sr.Kandinsky6SRAttention,
        hidden_states: torch.Tensor,
        rotary_emb: torch.Tensor,
        sparse_params: dict,
    ) -> torch.Tensor:
        query, key = self.turned(attn, hidden_states, rotary_emb)
        if not torch.compiler.is_compiling():
            sr._warn_uncompiled_flex_attention()
        mask = sr.nabla_block_mask(
            query.transpose(1, 2),
            key.transpose(1, 2),
            sparse_params["sta_mask"],
            thr=sparse_params["threshold"],
        )
        return self.output(attn, hidden_states, query, key, mask, AttentionBackendName.FLEX)
