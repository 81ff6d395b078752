"""Motif-Video: HunyuanVideo's dual and single blocks, with cross-attention to the text where the model has it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_motif_video import (
    MotifVideoAttnProcessor2_0,
    MotifVideoSingleTransformerBlock,
    MotifVideoTransformerBlock,
)
from torch import nn

from ..replace import Ops, Replacement, of_blocks, promoted
from ..residual import Residual
from .hunyuan_video import FusedHunyuanVideoAttnProcessor, modulation

# As in diffusers 0.39 to 0.42.1
SOURCES = {
    MotifVideoTransformerBlock.forward: "b58e118e1e293082",
    MotifVideoSingleTransformerBlock.forward: "eee28e9c5d747026",
    MotifVideoAttnProcessor2_0.__call__: "896d473921099cd8",
    AdaLayerNormZero.forward: "93374820c014f812",
    AdaLayerNormZeroSingle.forward: "d48dfb2b1e75e64f",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        MotifVideoTransformerBlock: dual_forward(ops),
        MotifVideoSingleTransformerBlock: single_forward(ops),
    }
    processor, known = FusedMotifVideoAttnProcessor, (MotifVideoAttnProcessor2_0,)
    return [
        item
        for stack in ("transformer_blocks", "single_transformer_blocks")
        for item in of_blocks(model, stack, ops, forwards, "attn", processor, known)
    ]


def dual_forward(ops: Ops) -> Callable:
    def forward(
        self: MotifVideoTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        image_embed_seq_len: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = modulation(self.norm1, temb, 6)
        text_shift, text_scale, text_gate, *text_ff = modulation(self.norm1_context, temb, 6)
        clip, text = (Residual(ops, promoted(x, gate)) for x in (hidden_states, encoder_hidden_states))
        text_normed = text.normed(self.norm1_context.norm, text_scale, text_shift)
        tables = {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
        branch, text_branch = self.attn(
            clip.normed(self.norm1.norm, scale, shift), encoder_hidden_states=text_normed, **tables
        )
        clip.add(branch, gate)
        if self.cross_attn is not None:
            clip.add(self.cross_attn(branch, text_normed, image_embed_seq_len=image_embed_seq_len, **tables))
        text.add(text_branch, text_gate)

        text_ff_shift, text_ff_scale, text_ff_gate = text_ff
        clip.add(self.ff(clip.normed(self.norm2, ff_scale, ff_shift)), ff_gate)
        text.add(self.ff_context(text.normed(self.norm2_context, text_ff_scale, text_ff_shift)), text_ff_gate)
        return clip.total(), text.total()

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: MotifVideoSingleTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        image_embed_seq_len: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.shape[1]
        shift, scale, gate = modulation(self.norm, temb, 3)
        both = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        stream = Residual(ops, promoted(both, gate))
        normed = stream.normed(self.norm.norm, scale, shift)
        mlp = self.act_mlp(self.proj_mlp(normed))
        tables = {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
        branch, text_branch = self.attn(normed[:, :-text], encoder_hidden_states=normed[:, -text:], **tables)
        if self.cross_attn is not None:
            tables["image_embed_seq_len"] = image_embed_seq_len
            branch = branch + self.cross_attn(branch, normed[:, -text:], **tables)
        branch = torch.cat([torch.cat([branch, text_branch], dim=1), mlp], dim=2)
        stream.add(self.proj_out(branch), gate)
        return stream.total()[:, :-text], stream.total()[:, -text:]

    return forward


class FusedMotifVideoAttnProcessor(FusedHunyuanVideoAttnProcessor):
    """`MotifVideoAttnProcessor2_0` for two streams: as HunyuanVideo's, but for LayerNorms where the model has them."""

    def normed(self, attn, query, key, norm, norms, tables, **turned):
        norm = "layer_head" if isinstance(norms[0], nn.LayerNorm) else norm
        return super().normed(attn, query, key, norm, norms, tables, **turned)
