"""A LoRA under the names that ComfyUI reads: those of the models' original repositories.

Where the original holds one fused layer (HunyuanVideo's `qkv`), the parts' LoRAs become one: their A stand below each
other and their B as blocks, so that the product is that of the parts. alpha / rank is folded into B, which leaves
nothing to a reader's convention of alpha. The names are those of `comfy/lora.py` and of diffusers' readers of such
files (`loaders/lora_conversion_utils.py`).
"""

from __future__ import annotations

import re

import torch

from pgdpo.messages.errors import InputError

PREFIX = "diffusion_model."

# (diffusers module, original layer[, the modules in the same block that the original fuses, in its order]); the first
# row whose pattern matches a module's whole name is taken.
_WAN = [
    (r"blocks\.(\d+)\.attn1\.to_([qkv])", r"blocks.\1.self_attn.\2"),
    (r"blocks\.(\d+)\.attn1\.to_out\.0", r"blocks.\1.self_attn.o"),
    (r"blocks\.(\d+)\.attn2\.to_([qkv])", r"blocks.\1.cross_attn.\2"),
    (r"blocks\.(\d+)\.attn2\.to_out\.0", r"blocks.\1.cross_attn.o"),
    (r"blocks\.(\d+)\.attn2\.add_([kv])_proj", r"blocks.\1.cross_attn.\2_img"),
    (r"blocks\.(\d+)\.ffn\.net\.0\.proj", r"blocks.\1.ffn.0"),
    (r"blocks\.(\d+)\.ffn\.net\.2", r"blocks.\1.ffn.2"),
    (r"condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"condition_embedder\.time_proj", "time_projection.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"proj_out", "head.head"),
]
_DOUBLE, _SINGLE = r"transformer_blocks\.(\d+)\.", r"single_transformer_blocks\.(\d+)\."
_REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)\."
_REFINED = r"txt_in.individual_token_refiner.blocks.\1."
_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_HUNYUAN_VIDEO = [
    (_DOUBLE + r"attn\.to_[qkv]", r"double_blocks.\1.img_attn_qkv", _ATTENTION),
    (_DOUBLE + r"attn\.add_[qkv]_proj", r"double_blocks.\1.txt_attn_qkv", _ADDED),
    (_DOUBLE + r"attn\.to_out\.0", r"double_blocks.\1.img_attn_proj"),
    (_DOUBLE + r"attn\.to_add_out", r"double_blocks.\1.txt_attn_proj"),
    (_DOUBLE + r"ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.fc1"),
    (_DOUBLE + r"ff\.net\.2", r"double_blocks.\1.img_mlp.fc2"),
    (_DOUBLE + r"ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.fc1"),
    (_DOUBLE + r"ff_context\.net\.2", r"double_blocks.\1.txt_mlp.fc2"),
    (_DOUBLE + r"norm1\.linear", r"double_blocks.\1.img_mod.linear"),
    (_DOUBLE + r"norm1_context\.linear", r"double_blocks.\1.txt_mod.linear"),
    (_SINGLE + r"(?:attn\.to_[qkv]|proj_mlp)", r"single_blocks.\1.linear1", (*_ATTENTION, "proj_mlp")),
    (_SINGLE + r"proj_out", r"single_blocks.\1.linear2"),
    (_SINGLE + r"norm\.linear", r"single_blocks.\1.modulation.linear"),
    (_REFINER + r"attn\.to_[qkv]", _REFINED + "self_attn_qkv", _ATTENTION),
    (_REFINER + r"attn\.to_out\.0", _REFINED + "self_attn_proj"),
    (_REFINER + r"ff\.net\.0\.proj", _REFINED + "mlp.fc1"),
    (_REFINER + r"ff\.net\.2", _REFINED + "mlp.fc2"),
]
_LTX = [
    (r"(transformer_blocks\.\d+\..+)", r"\1"),
    (r"proj_in", "patchify_proj"),
    (r"proj_out", "proj_out"),
    (r"(caption_projection\..+)", r"\1"),
    (r"time_embed\.(.+)", r"adaln_single.\1"),
]
NAMES = {"wan": _WAN, "hunyuan_video": _HUNYUAN_VIDEO, "ltx": _LTX}


def comfyui_state(
    family: str, transformer: torch.nn.Module, state: dict[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """A peft LoRA (`blocks.0.attn1.to_q.lora_A.weight`) -> the same under ComfyUI's names.

    `family`: a key of `NAMES`. `transformer`: the diffusers model that the LoRA is for, for the sizes of fused layers'
    parts. `scale`: alpha / rank. Raises InputError for a layer that ComfyUI has no name for.
    """
    layers: dict[str, list[str]] = {}
    for module in sorted({name.rsplit(".lora_", 1)[0] for name in state}):
        layer, parts = _original(family, module)
        layers[layer] = parts
    converted = {}
    for layer, parts in layers.items():
        down, up = _join(transformer, state, parts)
        converted[f"{PREFIX}{layer}.lora_A.weight"] = down
        converted[f"{PREFIX}{layer}.lora_B.weight"] = (up.float() * scale).to(up.dtype)
    return converted


def original_layers(family: str, transformer: torch.nn.Module) -> dict[str, list[str]]:
    """Name of a linear layer in the original repository -> the diffusers modules that it holds, in its order.

    Of a transformer without an adapter; empty for a family that `NAMES` does not have.
    """
    rows = NAMES.get(family, [])
    modules = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    known = [name for name in modules if any(re.fullmatch(row[0], name) for row in rows)]
    return dict(_original(family, name) for name in known)


def _original(family: str, module: str) -> tuple[str, list[str]]:
    """(the original layer's name, the diffusers modules that it holds, in its order)."""
    for pattern, name, *fused in NAMES[family]:
        if match := re.fullmatch(pattern, module):
            if not fused:
                return match.expand(name), [module]
            block = module[: match.end(1) + 1]  # up to the block's number
            return match.expand(name), [block + part for part in fused[0]]
    raise InputError(f"the adapter's layer `{module}` has no name in ComfyUI: leave it out of target_modules")


def _join(
    transformer: torch.nn.Module, state: dict[str, torch.Tensor], parts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A `[sum of ranks, in]`, B `[sum of the parts' outputs, sum of ranks]`).

    A part without a LoRA is rows of zeros.
    """
    downs = {part: state[f"{part}.lora_A.weight"] for part in parts if f"{part}.lora_A.weight" in state}
    columns, first, ups = sum(len(down) for down in downs.values()), 0, []
    for part in parts:
        up = next(iter(downs.values())).new_zeros(transformer.get_submodule(part).out_features, columns)
        if part in downs:
            rank = len(downs[part])
            up[:, first : first + rank] = state[f"{part}.lora_B.weight"]
            first += rank
        ups.append(up)
    return torch.cat(list(downs.values())), torch.cat(ups)
