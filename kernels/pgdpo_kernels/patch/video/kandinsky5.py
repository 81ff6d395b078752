"""Kandinsky 5: text and video blocks modulated in fp32, and a table of rotations that is laid out anew."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_kandinsky import (
    Kandinsky5Attention,
    Kandinsky5AttnProcessor,
    Kandinsky5Modulation,
    Kandinsky5RoPE1D,
    Kandinsky5RoPE3D,
    Kandinsky5TransformerDecoderBlock,
    Kandinsky5TransformerEncoderBlock,
    nablaT_v2,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Forward, Ops, Replacement, of_blocks

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    Kandinsky5TransformerEncoderBlock.forward: ("cc9b2bf0800d2344", "2cacd96467323ce2"),
    Kandinsky5TransformerDecoderBlock.forward: ("c4d4a8ae7e985708", "0096e2702b8d83ec"),
    Kandinsky5Modulation.forward: ("245c465cf5cc5f06", "85ed2fc47ca3ea6f"),
    Kandinsky5AttnProcessor.__call__: "5cc3419de99227d5",
    Kandinsky5RoPE1D.forward: ("94d64c1cd6f0a2fa", "9c9670c1b640f02d"),
    Kandinsky5RoPE3D.forward: ("e1d407ad0a95f28f", "39f04dc88b48434e"),
    nablaT_v2: "130e1f02280b4cd1",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    found = []
    if ops.in_attention:
        for name in ("text_rope_embeddings", "visual_rope_embeddings"):
            found.append(Forward(getattr(model, name), name, laid_out))
    forwards = {
        Kandinsky5TransformerEncoderBlock: encoder_forward(ops),
        Kandinsky5TransformerDecoderBlock: decoder_forward(ops),
    }
    processor, known = FusedKandinsky5AttnProcessor, (Kandinsky5AttnProcessor,)
    for stack in ("text_transformer_blocks", "visual_transformer_blocks"):
        found += of_blocks(model, stack, ops, forwards, "self_attention", processor, known)
    return found


def laid_out(self: nn.Module, *args, **kwargs) -> torch.Tensor:
    """diffusers' table of 2 by 2 rotations, `[..., head size / 2, 2, 2]`, in memory as rows of head size / 2.

    What else reads it finds the same values at the same places; the ops read cos and sin as rows.
    """
    rotations = type(self).forward(self, *args, **kwargs)
    return rotations.movedim(-3, -1).contiguous().movedim(-1, -3)


def cos_and_sin(rotations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[B | 1, N, 1, head size / 2]` of rotations `[B | 1, N, 1, head size / 2, 2, 2]` or `[N, 1, ...]`."""
    rotations = rotations.unsqueeze(0) if rotations.dim() == 5 else rotations
    cos, sin = rotations[..., 0, 0], rotations[..., 1, 0]
    if cos.stride(-1) != 1:  # tokens in another order than the grid's are a copy, in the old layout
        cos, sin = cos.contiguous(), sin.contiguous()
    return cos, sin


def encoder_forward(ops: Ops) -> Callable:
    def forward(
        self: Kandinsky5TransformerEncoderBlock,
        x: torch.Tensor,
        time_embed: torch.Tensor,
        rope: torch.Tensor,
    ) -> torch.Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (
            self.text_modulation(time_embed).float().chunk(6, -1)
        )
        normed = ops.norm_modulate(x, scale, shift, eps=self.self_attention_norm.eps)
        branch = self.self_attention(normed, rotary_emb=rope)
        x, normed = ops.gate_residual_norm_modulate(
            x, branch, gate, ff_scale, ff_shift, eps=self.feed_forward_norm.eps
        )
        return ops.gate_residual(x, self.feed_forward(normed), ff_gate)

    return forward


def decoder_forward(ops: Ops) -> Callable:
    def forward(
        self: Kandinsky5TransformerDecoderBlock,
        visual_embed: torch.Tensor,
        text_embed: torch.Tensor,
        time_embed: torch.Tensor,
        rope: torch.Tensor,
        sparse_params: dict | None,
    ) -> torch.Tensor:
        vectors = self.visual_modulation(time_embed).float().chunk(9, -1)
        shift, scale, gate, cross_shift, cross_scale, cross_gate, ff_shift, ff_scale, ff_gate = vectors
        normed = ops.norm_modulate(visual_embed, scale, shift, eps=self.self_attention_norm.eps)
        branch = self.self_attention(normed, rotary_emb=rope, sparse_params=sparse_params)
        visual_embed, normed = ops.gate_residual_norm_modulate(
            visual_embed, branch, gate, cross_scale, cross_shift, eps=self.cross_attention_norm.eps
        )
        branch = self.cross_attention(normed, encoder_hidden_states=text_embed)
        visual_embed, normed = ops.gate_residual_norm_modulate(
            visual_embed, branch, cross_gate, ff_scale, ff_shift, eps=self.feed_forward_norm.eps
        )
        return ops.gate_residual(visual_embed, self.feed_forward(normed), ff_gate)

    return forward


class KandinskyProcessor(FusedProcessor):
    """What the attentions of Kandinsky 5 and 6 share: their names, and norms without an eps of their own."""

    def turned(
        self, attn: nn.Module, hidden_states: torch.Tensor, rotations: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Query and key, normed and turned, `[B, N, heads, head size]`."""
        cos, sin = (None, None) if rotations is None else cos_and_sin(rotations)
        both = self.ops.qk_norm_rope(
            attn.to_query(hidden_states),
            attn.to_key(hidden_states),
            attn.query_norm.weight,
            attn.key_norm.weight,
            cos,
            sin,
            num_heads=attn.num_heads,
            norm="rms_head",
            eps=eps_of(attn.query_norm),
        )
        return [x.unflatten(2, (attn.num_heads, -1)) for x in both]

    def turned_alone(
        self, attn: nn.Module, x: torch.Tensor, norm: nn.RMSNorm, rotations: torch.Tensor | None
    ) -> torch.Tensor:
        """Queries or keys, normed and turned, `[B, N, heads, head size]`."""
        cos, sin = (None, None) if rotations is None else cos_and_sin(rotations)
        options = {"num_heads": attn.num_heads, "norm": "rms_head", "eps": eps_of(norm)}
        return self.ops.norm_rope(x, norm.weight, cos, sin, **options).unflatten(2, (attn.num_heads, -1))

    def output(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,  # of which the values are
        query: torch.Tensor,  # [B, N, heads, head size]
        key: torch.Tensor,
        mask: torch.Tensor | None,
        backend: str | None,
    ) -> torch.Tensor:
        value = attn.to_value(hidden_states).unflatten(2, (attn.num_heads, -1))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=backend,
            parallel_config=self._parallel_config,
        )
        return attn.out_layer(hidden_states.flatten(2, 3))


def eps_of(norm: nn.RMSNorm) -> float:
    """Without one of its own torch's, as it norms in fp32."""
    return torch.finfo(torch.float32).eps if norm.eps is None else norm.eps


class FusedKandinsky5AttnProcessor(KandinskyProcessor):
    """`Kandinsky5AttnProcessor` for self-attention, on tables of `laid_out`; cross-attention keeps its own."""

    def __call__(
        self,
        attn: Kandinsky5Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        rotary_emb: torch.Tensor | None = None,
        sparse_params: dict | None = None,
    ) -> torch.Tensor:
        query, key = self.turned(attn, hidden_states, rotary_emb)
        if rotary_emb is not None:  # theirs are rounded to bf16 there, in any dtype
            query, key = (x.to(torch.bfloat16).type_as(x) for x in (query, key))
        mask = None
        if sparse_params is not None:
            mask = nablaT_v2(query, key, sparse_params["sta_mask"], thr=sparse_params["P"])
        return self.output(attn, hidden_states, query, key, mask, self._attention_backend)
