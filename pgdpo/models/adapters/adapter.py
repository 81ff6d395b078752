"""LoRA adapters through peft, with weights that depend on the seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from pgdpo.config import AdapterConfig
from pgdpo.messages.errors import InputError

if TYPE_CHECKING:
    from pgdpo.models.adapters.lora_file import Update

NAME = "default"
REFERENCE = "reference"


def add_adapter(transformer: torch.nn.Module, config: AdapterConfig, seed: int) -> None:
    """Freeze the model and add an fp32 LoRA that starts as the identity (lora_B = 0).

    Raises InputError for what peft refuses; `check_targets` says more of it, and before there are weights.
    """
    transformer.requires_grad_(False)
    lora = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=config.target_modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            transformer.add_adapter(lora, adapter_name=NAME)
        except ValueError as error:
            raise InputError(f"model.adapter.target_modules is {config.target_modules}: {error}") from error
    _hold_in_fp32(transformer)


def start_from(
    transformer: torch.nn.Module, updates: Mapping[str, Update], config: AdapterConfig, name: str = NAME
) -> None:
    """Put a file's updates (`open_lora`) into an adapter that is the identity.

    What they add to the weights stays the same: lora_B takes in what the scales differ by (a plain copy where they are
    equal), and a rank above the file's keeps fresh rows of lora_A, behind columns of zeros in lora_B.
    """
    scale = config.alpha / config.rank
    state = {key: tensor.clone() for key, tensor in adapter_state(transformer, name).items()}
    for module, update in updates.items():
        rank = len(update.down)
        up = update.up if update.scale == scale else update.up * (update.scale / scale)
        state[f"{module}.lora_A.weight"][:rank] = update.down
        state[f"{module}.lora_B.weight"][:, :rank] = up
    set_peft_model_state_dict(transformer, state, adapter_name=name)


def add_reference_adapter(transformer: torch.nn.Module, *, identity: bool = False) -> None:
    """A second adapter, `REFERENCE`, equal to the first and frozen; the first stays the active one.

    `identity`: it adds nothing (lora_B = 0), wherever the first starts from.
    """
    with torch.random.fork_rng(devices=[]):
        transformer.add_adapter(transformer.peft_config[NAME], adapter_name=REFERENCE)
    _hold_in_fp32(transformer)
    state = adapter_state(transformer)
    if identity:
        state = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in state.items()}
    set_peft_model_state_dict(transformer, state, adapter_name=REFERENCE)
    transformer.set_adapter(NAME)


def _hold_in_fp32(transformer: torch.nn.Module) -> None:
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapter_state(transformer: torch.nn.Module, name: str = NAME) -> dict[str, torch.Tensor]:
    """The adapter's tensors under peft's names (`blocks.0.attn1.to_q.lora_A.weight`), on the CPU."""
    state = get_peft_model_state_dict(transformer, adapter_name=name)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def adapter_metadata(transformer: torch.nn.Module) -> dict:
    """The LoraConfig that belongs to `adapter_state`, as JSON types."""
    config = transformer.peft_config[NAME].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def load_adapter_state(transformer: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put `adapter_state` back into a model that has the same adapter."""
    set_peft_model_state_dict(transformer, state, adapter_name=NAME)
