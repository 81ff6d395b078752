"""JoyImage-Edit-Plus: JoyImage-Edit's blocks, with tables of each sample's own images and a mask of their padding."""

from __future__ import annotations

import torch
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_joyimage_edit_plus import (
    JoyImageEditPlusAttnProcessor,
    JoyImageEditPlusModulate,
    JoyImageEditPlusTransformerBlock,
    _apply_rotary_emb_batched,
)
from torch import nn

from ..replace import Ops, Replacement, of_blocks
from .joy_image import FusedJoyImageAttnProcessor, block_forward

# As in diffusers 0.40 to 0.42.1
SOURCES = {
    JoyImageEditPlusTransformerBlock.forward: "6d2d3203d86b33f5",
    JoyImageEditPlusModulate.forward: "9417f49d36758932",
    JoyImageEditPlusAttnProcessor.__call__: "5b90b63870eede0c",
    FP32LayerNorm.forward: "fb3a8812f75a9d83",
    _apply_rotary_emb_batched: "e916f3d8cc694614",
}


def replacements(model: nn.Module, ops: Ops) -> list[Replacement]:
    forwards = {JoyImageEditPlusTransformerBlock: block_forward(ops)}
    processor, known = FusedJoyImageEditPlusAttnProcessor, (JoyImageEditPlusAttnProcessor,)
    return of_blocks(model, "double_blocks", ops, forwards, "attn", processor, known)


class FusedJoyImageEditPlusAttnProcessor(FusedJoyImageAttnProcessor):
    """`JoyImageEditPlusAttnProcessor`: `image_rotary_emb` is cos and sin `[B, N, head size]`."""

    def tables(
        self, image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[tuple | None, tuple | None]:
        return image_rotary_emb, None
