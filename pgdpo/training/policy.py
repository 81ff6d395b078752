"""The policy and the data of a configuration, checked before the first step."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import ModuleType

import torch

from pgdpo import models
from pgdpo.config import Config
from pgdpo.console import say
from pgdpo.data.prepared import PreparedPairs
from pgdpo.errors import InputError
from pgdpo.models.adapter import add_adapter
from pgdpo_kernels import apply_to


def build_policy(config: Config, device: torch.device) -> tuple[ModuleType, torch.nn.Module]:
    """(family module, transformer on `device` with its adapter).

    bf16 with an adapter: the frozen weights are held in bf16; without one all weights stay fp32 (they train).
    """
    family = models.family(config.model.family)
    half = config.train.precision == "bf16" and config.model.adapter is not None
    transformer = family.load_transformer(
        config.model.path,
        dtype=torch.bfloat16 if half else torch.float32,
        random_init_seed=config.train.seed if config.model.random_init else None,
    ).to(device)
    if config.model.adapter is not None:
        add_adapter(transformer, config.model.adapter, config.train.seed)
    set_attention(transformer, config, device)
    fuse(transformer, config.model.kernels, device)
    if config.model.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return family, transformer.train()


def fuse(transformer: torch.nn.Module, kernels: str, device: torch.device) -> None:
    """Put the fused ops into the transformer, as `model.kernels` asks. Raises InputError where they cannot run."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if kernels == "eager" or (kernels == "auto" and not runs):
        return
    if not runs:
        raise InputError(
            f"model.kernels is `triton`: Triton needs a GPU, this is {device.type}; use `auto` or `eager`"
        )
    try:
        replaced = apply_to(transformer, strict=kernels == "triton")
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"model.kernels is `triton`: {error}; use `auto` or `eager`") from error
    say(f"fused ops in {len(replaced)} modules of the transformer")


def set_attention(transformer: torch.nn.Module, config: Config, device: torch.device) -> None:
    """Choose the attention backend and try it once, forward and backward, in the dtype that training will use.

    Raises InputError if diffusers does not know it or it has no operator on this device.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    name = config.model.attention
    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise InputError(f"model.attention is {name!r}; diffusers knows {', '.join(known)}")
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    head = transformer.config.attention_head_dim
    query = torch.zeros(
        1, 16, 1, head, device=device, dtype=dtype, requires_grad=True
    )  # (batch, tokens, heads, head)
    try:
        transformer.set_attention_backend(name)
        dispatch_attention_fn(query, query, query, backend=AttentionBackendName(name)).sum().backward()
    except (NotImplementedError, RuntimeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.attention is {name!r}: it has no operator for {device.type} with {dtype} and head size {head} here "
            f"({reason}); use `native`, or another of {', '.join(known)}"
        ) from error


def open_pairs(config: Config, split: str) -> PreparedPairs:
    """The prepared pairs of `train` or `held_out`. Raises InputError if they were prepared with other settings."""
    data = config.data
    return PreparedPairs(
        prepared_folder(config, split),
        expect={"size": [data.num_frames, data.height, data.width]},
        seed=config.train.seed,
        caption_dropout=data.caption_dropout if split == "train" else 0.0,
    )


def prepared_folder(config: Config, split: str) -> Path:
    return config.output_dir / "prepared" / split


def run_identity(config: Config, data: PreparedPairs) -> dict:
    """What a checkpoint must agree on with the run that loads it."""
    family = models.family(config.model.family)
    model = config.model.model_dump(include={"family", "adapter", "random_init"})
    parts = [model, family.architecture(config.model.path)]
    if not config.model.random_init:
        parts.append(family.fingerprint(config.model.path, ("transformer",)))
    return {
        "model": f"{config.model.path} ({_digest(parts)})",
        "data": data.fingerprint,
        "objective": config.objective,
        "seed": config.train.seed,
        "global_batch_pairs": config.train.global_batch_pairs,
    }


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
