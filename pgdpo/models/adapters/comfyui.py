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
# A family's `comfyui`: (pattern of a diffusers module's whole name, original layer[, the modules in the same block that
# the original fuses, in its order]); the first row that matches is taken.
Rows = tuple[tuple, ...]


def comfyui_state(
    rows: Rows, transformer: torch.nn.Module, state: dict[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """A peft LoRA (`blocks.0.attn1.to_q.lora_A.weight`) -> the same under ComfyUI's names.

    `rows`: a family's `comfyui`. `transformer`: the diffusers model that the LoRA is for, for the sizes of fused
    layers' parts. `scale`: alpha / rank. Raises InputError for a layer that ComfyUI has no name for.
    """
    layers: dict[str, list[str]] = {}
    for module in sorted({name.rsplit(".lora_", 1)[0] for name in state}):
        layer, parts = _original(rows, module)
        layers[layer] = parts
    converted = {}
    for layer, parts in layers.items():
        down, up = _join(transformer, state, parts)
        converted[f"{PREFIX}{layer}.lora_A.weight"] = down
        converted[f"{PREFIX}{layer}.lora_B.weight"] = (up.float() * scale).to(up.dtype)
    return converted


def original_layers(rows: Rows, transformer: torch.nn.Module) -> dict[str, list[str]]:
    """Name of a linear layer in the original repository -> the diffusers modules that it holds, in its order.

    Of a transformer without an adapter; empty where there are no `rows`.
    """
    modules = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    known = [name for name in modules if any(re.fullmatch(row[0], name) for row in rows)]
    return dict(_original(rows, name) for name in known)


def _original(rows: Rows, module: str) -> tuple[str, list[str]]:
    """(the original layer's name, the diffusers modules that it holds, in its order)."""
    for pattern, name, *fused in rows:
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
