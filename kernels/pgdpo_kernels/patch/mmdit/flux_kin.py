"""Models that took FLUX.1's blocks over: LongCat-Image, Ovis-Image, Bria 3.2 and FIBO."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle, RMSNorm
from diffusers.models.transformers.transformer_bria import (
    BriaAttnProcessor,
    BriaSingleTransformerBlock,
    BriaTransformerBlock,
)
from diffusers.models.transformers.transformer_bria_fibo import (
    BriaFiboAttnProcessor,
    BriaFiboSingleTransformerBlock,
    BriaFiboTransformerBlock,
)
from diffusers.models.transformers.transformer_longcat_image import (
    LongCatImageAttnProcessor,
    LongCatImageSingleTransformerBlock,
    LongCatImageTransformerBlock,
)
from diffusers.models.transformers.transformer_ovis_image import (
    OvisImageAttnProcessor,
    OvisImageSingleTransformerBlock,
    OvisImageTransformerBlock,
)
from torch import nn

from ..replace import Ops, Replacement
from .flux import (
    dual_forward,
    flux_mlp,
    joined_single,
    of_stacks,
    single,
    single_forward,
    zero_dual,
)
from .joint import zero_modulation

# As in diffusers 0.38 to 0.42.1
SOURCES = {
    LongCatImageTransformerBlock.forward: "0b184cbe172708b6",
    LongCatImageSingleTransformerBlock.forward: "57350a6dab842b40",
    LongCatImageAttnProcessor.__call__: "a62d87d1e17a742b",
    OvisImageTransformerBlock.forward: "0b184cbe172708b6",
    OvisImageSingleTransformerBlock.forward: "337accae56e5c51a",
    OvisImageAttnProcessor.__call__: "a756a2f722ba5fc8",
    BriaTransformerBlock.forward: "f150ef9262341525",
    BriaSingleTransformerBlock.forward: "213216f1c9f6d2fc",
    BriaAttnProcessor.__call__: "b2866eb343add696",
    BriaFiboTransformerBlock.forward: "0b184cbe172708b6",
    BriaFiboSingleTransformerBlock.forward: "5479910531fb4b44",
    BriaFiboAttnProcessor.__call__: "af29a68c9e9e59af",
    RMSNorm.forward: ("ab9075d036873ac9", "fa91ca74b4badaaf"),
    AdaLayerNormZero.forward: "93374820c014f812",
    AdaLayerNormZeroSingle.forward: "d48dfb2b1e75e64f",
    apply_rotary_emb: "a25267d425f8c5ea",
}
PROCESSORS = (LongCatImageAttnProcessor, OvisImageAttnProcessor, BriaAttnProcessor, BriaFiboAttnProcessor)


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    dual = dual_forward(ops)
    forwards = {
        LongCatImageTransformerBlock: dual,
        LongCatImageSingleTransformerBlock: single_forward(ops, flux_mlp),
        OvisImageTransformerBlock: dual,
        OvisImageSingleTransformerBlock: single_forward(ops, gated_mlp),
        BriaTransformerBlock: bria_dual_forward(ops),
        BriaSingleTransformerBlock: bria_single_forward(ops),
        BriaFiboTransformerBlock: dual,
        BriaFiboSingleTransformerBlock: joined_forward(ops),
    }
    return of_stacks(model, ops, forwards, PROCESSORS)


def gated_mlp(block: OvisImageSingleTransformerBlock, normed: torch.Tensor) -> torch.Tensor:
    inner, gate = block.proj_mlp(normed).chunk(2, dim=-1)
    return block.act_mlp(gate) * inner


def bria_dual_forward(ops: Ops) -> Callable:
    def forward(
        self: BriaTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kwargs = (attention_kwargs or {}) | {"image_rotary_emb": image_rotary_emb}
        return zero_dual(ops, self, hidden_states, encoder_hidden_states, temb, **kwargs)

    return forward


def bria_single_forward(ops: Ops) -> Callable:
    def forward(
        self: BriaSingleTransformerBlock,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_kwargs: dict | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kwargs = (attention_kwargs or {}) | {"image_rotary_emb": image_rotary_emb}
        return joined_single(ops, self, hidden_states, encoder_hidden_states, temb, flux_mlp, **kwargs)

    return forward


def joined_forward(ops: Ops) -> Callable:
    """A single block whose model joins the streams."""

    def forward(
        self: BriaFiboSingleTransformerBlock,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
        joint_attention_kwargs: dict | None = None,
    ) -> torch.Tensor:
        kwargs = (joint_attention_kwargs or {}) | {"image_rotary_emb": image_rotary_emb}
        return single(ops, self, hidden_states, zero_modulation(self.norm, temb, 3), flux_mlp, **kwargs)

    return forward
