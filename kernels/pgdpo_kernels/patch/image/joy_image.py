"""JoyImage-Edit: two streams under fp32 LayerNorms, and attention on fused projections."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_joyimage import (
    JoyImageAttnProcessor,
    JoyImageModulate,
    JoyImageTransformerBlock,
    _apply_rotary_emb,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Replacement, of_blocks
from ..streams import Stream, two_streams

# As in diffusers 0.39 to 0.42.1
SOURCES = {
    JoyImageTransformerBlock.forward: "47aea64de3b41a2f",
    JoyImageModulate.forward: "9417f49d36758932",
    JoyImageAttnProcessor.__call__: "5810d05447a2f45f",
    FP32LayerNorm.forward: "fb3a8812f75a9d83",
    _apply_rotary_emb: "eb98f730ec1efb95",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards, known = {JoyImageTransformerBlock: block_forward(ops)}, (JoyImageAttnProcessor,)
    return of_blocks(model, "double_blocks", ops, forwards, "attn", FusedJoyImageAttnProcessor, known)


def block_forward(ops: Ops) -> Callable:
    def forward(
        self: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,  # [B, 6, D]
        image_rotary_emb: tuple | None = None,
        attention_mask: torch.Tensor | None = None,  # Edit-Plus's
    ) -> tuple[torch.Tensor, torch.Tensor]:
        own = {} if attention_mask is None else {"attention_mask": attention_mask}
        return two_streams(
            ops,
            Stream(hidden_states, self.img_mod(temb), (self.img_norm1.eps, self.img_norm2.eps)),
            Stream(encoder_hidden_states, self.txt_mod(temb), (self.txt_norm1.eps, self.txt_norm2.eps)),
            lambda normed, text_normed: self.attn(
                hidden_states=normed,
                encoder_hidden_states=text_normed,
                image_rotary_emb=image_rotary_emb,
                **own,
            ),
            lambda normed, text_normed: (self.img_mlp(normed), self.txt_mlp(text_normed)),
        )

    return forward


class FusedJoyImageAttnProcessor(FusedProcessor):
    """`JoyImageAttnProcessor`: tables for the image and, where the text is turned too, for the text."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        image_rotary_emb: tuple | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if encoder_hidden_states is None:
            raise ValueError(
                f"{type(self).__name__}: encoder_hidden_states must be given, the text's hidden states"
            )
        tables, text_tables = (
            pair and tuple(table.to(hidden_states.device) for table in pair)
            for pair in self.tables(image_rotary_emb)
        )
        norms, text_norms = (
            (attn.img_attn_q_norm, attn.img_attn_k_norm),
            (attn.txt_attn_q_norm, attn.txt_attn_k_norm),
        )
        query, key, value = attn.img_attn_qkv(hidden_states).chunk(3, dim=-1)
        query, key = self.normed(attn, query, key, "rms_head", norms, tables)
        text_query, text_key, text_value = attn.txt_attn_qkv(encoder_hidden_states).chunk(3, dim=-1)
        text_query, text_key = self.normed(attn, text_query, text_key, "rms_head", text_norms, text_tables)
        joint = ((query, text_query), (key, text_key), (value, text_value))
        joint = self.attend(attn, *(torch.cat(both, dim=1) for both in joint), attention_mask)
        image, text = joint.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        return attn.img_attn_proj(image), attn.txt_attn_proj(text)

    def tables(self, image_rotary_emb: tuple | None) -> tuple[tuple | None, tuple | None]:
        return image_rotary_emb or (None, None)
