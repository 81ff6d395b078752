"""What diffusers keeps in fp32 in a model of a smaller dtype (`_keep_in_fp32_modules`), held and computed so."""

from __future__ import annotations

import contextlib
import types
from typing import TYPE_CHECKING

from pgdpo.models.later import torch

if TYPE_CHECKING:
    from pgdpo.config import Config


def compute_dtype(config: Config) -> torch.dtype:
    """Of matrix products, and of all that the transformer is told: a pipeline of that dtype tells it the same."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def held_dtype(transformer: torch.nn.Module, name: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of one of the transformer's tensors in a model of `dtype`: diffusers keeps some modules in fp32."""
    kept = not set(name.split(".")).isdisjoint(transformer._keep_in_fp32_modules or [])
    return torch.float32 if kept else dtype


def hold_in(transformer: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Cast the parameters in place to what a model of `dtype` holds them in, and return the transformer."""
    for name, parameter in transformer.named_parameters():
        parameter.data = parameter.data.to(held_dtype(transformer, name, dtype))
    return transformer


def computes_in(transformer: torch.nn.Module, device: torch.device) -> torch.dtype:
    """The dtype of the transformer's matrix products here and now: autocast's, where that is on."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else transformer.dtype


def compute_kept_in_fp32(transformer: torch.nn.Module) -> torch.nn.Module:
    """Switch autocast off inside the modules that diffusers keeps in fp32, and return the transformer.

    In a bf16 pipeline they compute in fp32 because their weights are; autocast would round their matrix products to
    bf16 (Wan's time embedder: an error of 0.4% in place of the 0.17% that its bf16 output has). Norms and tables have
    no matrix product, and nothing is changed in them. Parameters, names and hooks stay as they are.
    """
    for name, module in transformer.named_modules():
        own = name.rpartition(".")[2]
        if own in (transformer._keep_in_fp32_modules or []) and any(p.ndim > 1 for p in module.parameters()):
            # Bound as a method, so that a deep copy of the module computes with the copy's weights.
            module.forward = types.MethodType(_without_autocast, module)
    return transformer


def _without_autocast(module: torch.nn.Module, *inputs, **options):
    device = inputs[0].device.type  # offloaded weights lie elsewhere until they are used
    known = torch.amp.is_autocast_available(device)  # not of the meta device
    with torch.autocast(device, enabled=False) if known else contextlib.nullcontext():
        return type(module).forward(module, *inputs, **options)
