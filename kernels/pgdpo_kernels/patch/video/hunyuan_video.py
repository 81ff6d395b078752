"""HunyuanVideo, Framepack, HunyuanVideo 1.5 and HunyuanImage: dual and single blocks.

The token-replace blocks of HunyuanVideo's image model keep their own forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTokenReplaceSingleTransformerBlock,
    HunyuanVideoTokenReplaceTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
    HunyuanVideo15TransformerBlock,
)
from diffusers.models.transformers.transformer_hunyuanimage import (
    HunyuanImageAttnProcessor,
    HunyuanImageSingleTransformerBlock,
    HunyuanImageTransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks, promoted

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    HunyuanVideoTransformerBlock.forward: "dc6d07e7f1c452e3",
    HunyuanVideoSingleTransformerBlock.forward: "3e921434984e3891",
    HunyuanVideoAttnProcessor2_0.__call__: "9d2e9a44e1dc2bf7",
    HunyuanVideo15TransformerBlock.forward: "dc6d07e7f1c452e3",
    HunyuanVideo15AttnProcessor2_0.__call__: "7bb9b09c8f4ac8c8",
    HunyuanImageTransformerBlock.forward: "62ab0bb8cf9cfbc7",
    HunyuanImageSingleTransformerBlock.forward: "ee384e972e85efd1",
    HunyuanImageAttnProcessor.__call__: "03b77a4e7b05bf70",
    AdaLayerNormZero.forward: "93374820c014f812",
    AdaLayerNormZeroSingle.forward: "d48dfb2b1e75e64f",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    dual, single = dual_forward(ops), single_forward(ops)
    forwards = {
        HunyuanVideoTransformerBlock: dual,
        HunyuanVideoSingleTransformerBlock: single,
        HunyuanVideoTokenReplaceTransformerBlock: None,
        HunyuanVideoTokenReplaceSingleTransformerBlock: None,
        HunyuanVideo15TransformerBlock: dual,
        HunyuanImageTransformerBlock: dual,
        HunyuanImageSingleTransformerBlock: single,
    }
    processor, known = (
        FusedHunyuanVideoAttnProcessor,
        (HunyuanVideoAttnProcessor2_0, HunyuanImageAttnProcessor),
    )
    if isinstance(model.transformer_blocks[0], HunyuanVideo15TransformerBlock):
        processor, known = FusedHunyuanVideo15AttnProcessor, (HunyuanVideo15AttnProcessor2_0,)
    stacks = ("transformer_blocks", "single_transformer_blocks")
    return [
        item
        for stack in stacks
        if hasattr(model, stack)
        for item in of_blocks(model, stack, ops, forwards, "attn", processor, known)
    ]


def dual_forward(ops: Ops) -> Callable:
    def forward(
        self: HunyuanVideoTransformerBlock | HunyuanVideo15TransformerBlock | HunyuanImageTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: tuple[torch.Tensor, torch.Tensor] | None = None,
        *args,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # HunyuanImage's name for them
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = modulation(self.norm1, temb, 6)
        text_shift, text_scale, text_gate, text_ff_shift, text_ff_scale, text_ff_gate = modulation(
            self.norm1_context, temb, 6
        )
        hidden_states = promoted(hidden_states, gate)
        encoder_hidden_states = promoted(encoder_hidden_states, text_gate)
        branch, text_branch = self.attn(
            hidden_states=ops.norm_modulate(hidden_states, scale, shift, eps=self.norm1.norm.eps),
            encoder_hidden_states=ops.norm_modulate(
                encoder_hidden_states, text_scale, text_shift, eps=self.norm1_context.norm.eps
            ),
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb if freqs_cis is None else freqs_cis,
        )
        hidden_states, normed = ops.gate_residual_norm_modulate(
            hidden_states, branch, gate, ff_scale, ff_shift, eps=self.norm2.eps
        )
        encoder_hidden_states, text_normed = ops.gate_residual_norm_modulate(
            encoder_hidden_states,
            text_branch,
            text_gate,
            text_ff_scale,
            text_ff_shift,
            eps=self.norm2_context.eps,
        )
        return (
            ops.gate_residual(hidden_states, self.ff(normed), ff_gate),
            ops.gate_residual(encoder_hidden_states, self.ff_context(text_normed), text_ff_gate),
        )

    return forward


def single_forward(ops: Ops) -> Callable:
    def forward(
        self: HunyuanVideoSingleTransformerBlock | HunyuanImageSingleTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        *args,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.shape[1]
        shift, scale, gate = modulation(self.norm, temb, 3)
        residual = promoted(torch.cat([hidden_states, encoder_hidden_states], dim=1), gate)
        normed = ops.norm_modulate(residual, scale, shift, eps=self.norm.norm.eps)
        mlp = self.act_mlp(self.proj_mlp(normed))
        branch, text_branch = self.attn(
            hidden_states=normed[:, :-text],
            encoder_hidden_states=normed[:, -text:],
            attention_mask=attention_mask,
            image_rotary_emb=image_rotary_emb,
        )
        branch = torch.cat([torch.cat([branch, text_branch], dim=1), mlp], dim=2)
        hidden_states = ops.gate_residual(residual, self.proj_out(branch), gate)
        return hidden_states[:, :-text], hidden_states[:, -text:]

    return forward


def modulation(norm: nn.Module, temb: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
    return norm.linear(norm.silu(temb)).chunk(parts, dim=1)


class FusedHunyuanVideoAttnProcessor(FusedProcessor):
    """`HunyuanVideoAttnProcessor2_0` and `HunyuanImageAttnProcessor`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        turned = hidden_states.shape[1]
        single = attn.add_q_proj is None
        if single and text:
            hidden_states = torch.cat([hidden_states, encoder_hidden_states], dim=1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        norms = (attn.norm_q, attn.norm_k)
        query, key = self.normed(attn, query, key, "rms_head", norms, image_rotary_emb, rope_len=turned)
        if not single and text:
            text_query = attn.add_q_proj(encoder_hidden_states)
            text_key = attn.add_k_proj(encoder_hidden_states)
            norms = (attn.norm_added_q, attn.norm_added_k)
            text_query, text_key = self.normed(attn, text_query, text_key, "rms_head", norms, None)
            query, key = torch.cat([query, text_query], dim=1), torch.cat([key, text_key], dim=1)
            value = torch.cat([value, attn.add_v_proj(encoder_hidden_states)], dim=1)

        hidden_states = self.attend(attn, query, key, value, attention_mask)
        if encoder_hidden_states is None:
            return hidden_states, None
        hidden_states, encoder_hidden_states = hidden_states[:, :-text], hidden_states[:, -text:]
        if getattr(attn, "to_out", None) is not None:
            hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if getattr(attn, "to_add_out", None) is not None:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


class FusedHunyuanVideo15AttnProcessor(FusedHunyuanVideoAttnProcessor):
    """`HunyuanVideo15AttnProcessor2_0`: padded tokens of the text neither see nor are seen."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,  # [B, text]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        tokens = hidden_states.shape[1] + text
        valid = F.pad(attention_mask, (tokens - attention_mask.shape[1], 0), value=True).bool()
        mask = valid[:, None, :, None] & valid[:, None, None, :]
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)
