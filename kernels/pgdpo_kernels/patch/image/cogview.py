"""CogView3-Plus, CogView4 and GLM-Image: two streams; the later two rotate halves of a head."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import CogView3PlusAdaLayerNormZeroTextImage
from diffusers.models.transformers.transformer_cogview3plus import CogView3PlusTransformerBlock
from diffusers.models.transformers.transformer_cogview4 import (
    CogView4AdaLayerNormZero,
    CogView4AttnProcessor,
    CogView4TrainingAttnProcessor,
    CogView4TransformerBlock,
)
from diffusers.models.transformers.transformer_glm_image import (
    GlmImageAdaLayerNormZero,
    GlmImageAttnProcessor,
    GlmImageTransformerBlock,
)
from torch import nn

from ..attention import FusedProcessor
from ..replace import Ops, Processor, Replacement, of_blocks
from ..streams import Stream, two_streams
from ..video.cogvideox import FusedNormCogVideoXAttnProcessor

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    CogView3PlusTransformerBlock.forward: "bed7cbaa4be1936c",
    CogView3PlusAdaLayerNormZeroTextImage.forward: "b6d089ea80da6008",
    CogVideoXAttnProcessor2_0.__call__: "a1ecc57eaf6a958b",
    FusedCogVideoXAttnProcessor2_0.__call__: "5a1c50f8bf400f0e",
    CogView4TransformerBlock.forward: "0f02f5ba4e558f2b",
    CogView4AdaLayerNormZero.forward: "d5e54a99be6fba71",
    CogView4AttnProcessor.__call__: "f0c45c2f94b39a75",
    GlmImageTransformerBlock.forward: "0f01ca7c28c64b02",
    GlmImageAdaLayerNormZero.forward: "d5e54a99be6fba71",
    GlmImageAttnProcessor.__call__: "e295347e13e67608",
    apply_rotary_emb: "a25267d425f8c5ea",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {
        CogView3PlusTransformerBlock: plus_forward(ops),
        CogView4TransformerBlock: cogview4_forward(ops),
        GlmImageTransformerBlock: cogview4_forward(ops),
    }
    plus = isinstance(model.transformer_blocks[0], CogView3PlusTransformerBlock)
    if plus:
        processor = FusedNormCogVideoXAttnProcessor
        known = (CogVideoXAttnProcessor2_0, FusedCogVideoXAttnProcessor2_0)
    else:
        processor, known = FusedCogView4AttnProcessor, (CogView4AttnProcessor, GlmImageAttnProcessor)
    found = of_blocks(model, "transformer_blocks", ops, forwards, "attn1", processor, known)
    return [item for item in found if not keeps_processor(item)]


def keeps_processor(item: Replacement) -> bool:
    """A trainer's processor that packs samples stays, with the blocks patched around it."""
    return isinstance(item, Processor) and type(item.module.processor) is CogView4TrainingAttnProcessor


def plus_forward(ops: Ops) -> Callable:
    def forward(
        self: CogView3PlusTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        emb: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.size(1)
        vectors = self.norm1.linear(self.norm1.silu(emb)).chunk(12, dim=1)

        def feed_forward(normed, text_normed):
            branch = self.ff(torch.cat([text_normed, normed], dim=1))
            return branch[:, text:], branch[:, :text]

        streams = two_streams(
            ops,
            Stream(hidden_states, vectors[:6], (self.norm1.norm_x.eps, self.norm2.eps)),
            Stream(encoder_hidden_states, vectors[6:], (self.norm1.norm_c.eps, self.norm2_context.eps)),
            lambda normed, text_normed: self.attn1(hidden_states=normed, encoder_hidden_states=text_normed),
            feed_forward,
        )
        return tuple(x.clip(-65504, 65504) if x.dtype == torch.float16 else x for x in streams)

    return forward


def cogview4_forward(ops: Ops) -> Callable:
    def forward(
        self: CogView4TransformerBlock | GlmImageTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | list | None = None,
        attention_mask: torch.Tensor | None = None,
        attention_kwargs: dict | None = None,
        kv_cache: object | None = None,  # GLM-Image's
    ) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.norm1.linear(temb).chunk(12, dim=1)
        own = dict(attention_kwargs or {})
        if kv_cache is not None:
            own["kv_cache"] = kv_cache
        return two_streams(
            ops,
            Stream(hidden_states, vectors[::2], (self.norm1.norm.eps, self.norm2.eps)),
            Stream(
                encoder_hidden_states, vectors[1::2], (self.norm1.norm_context.eps, self.norm2_context.eps)
            ),
            lambda normed, text_normed: self.attn1(
                hidden_states=normed,
                encoder_hidden_states=text_normed,
                image_rotary_emb=image_rotary_emb,
                attention_mask=attention_mask,
                **own,
            ),
            lambda normed, text_normed: (self.ff(normed), self.ff(text_normed)),
        )

    return forward


class FusedCogView4AttnProcessor(FusedProcessor):
    """`CogView4AttnProcessor` and `GlmImageAttnProcessor`."""

    _attention_backend = (
        "native"  # CogView4's calls torch's attention, whatever the backend; GLM-Image's hands its over
    )

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,  # [B, text tokens]
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        kv_cache: object | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text = encoder_hidden_states.shape[1]
        hidden_states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        norms, turned = (attn.norm_q, attn.norm_k), {"rope": "halves", "rope_start": text}
        query, key = self.normed(attn, query, key, "layer_head", norms, image_rotary_emb, **turned)
        if kv_cache is not None:
            key, value = cached(kv_cache, attn.heads, key, value)

        mask = None
        if attention_mask is not None:
            valid = attention_mask.to(query.device) > 0
            valid = torch.cat([valid, valid.new_ones(query.shape[0], query.shape[1] - text)], dim=1)
            mask = (valid[:, None, :, None] & valid[:, None, None, :]).to(query.dtype)
        hidden_states = self.attend(attn, query, key, value, mask)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        encoder_hidden_states, hidden_states = hidden_states.split(
            [text, hidden_states.shape[1] - text], dim=1
        )
        return hidden_states, encoder_hidden_states


def cached(kv_cache, heads: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GLM-Image's cache of its condition images, which holds heads."""
    per_head = [x.unflatten(2, (heads, -1)) for x in (key, value)]
    if kv_cache.mode == "write":
        kv_cache.store(*per_head)
    elif kv_cache.mode == "read":
        return tuple(x.flatten(2) for x in kv_cache.get(*per_head))
    return key, value
