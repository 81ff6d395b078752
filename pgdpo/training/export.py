"""The newest checkpoint's weights as safetensors under diffusers' names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from pgdpo.config import Config
from pgdpo.errors import InputError
from pgdpo.models.adapter import adapter_metadata, adapter_state, load_adapter_state
from pgdpo.training.checkpoint import WEIGHTS, latest_checkpoint
from pgdpo.training.policy import build_policy


def export(config: Config) -> Path:
    """Write `run_dir/export`: an adapter for `load_lora_weights`, or a whole `transformer/` folder.

    Returns the folder. Raises InputError if the run has no valid checkpoint, or one of another model.
    """
    family, transformer = load_trained(config)
    folder = config.run_dir / "export"
    if config.model.adapter is None:
        transformer.save_pretrained(folder / "transformer")
    else:
        family.save_adapter(folder, adapter_state(transformer), adapter_metadata(transformer))
    return folder


def load_trained(config: Config, device: torch.device | None = None):
    """(family module, transformer with the newest checkpoint's weights, in eval mode)."""
    path = latest_checkpoint(config.run_dir)
    if path is None:
        raise InputError(
            f"{config.run_dir}: holds no valid checkpoint: run `pgdpo train` with this configuration first"
        )
    family, transformer = build_policy(config, device or torch.device("cpu"))
    weights = load_file(path / WEIGHTS)
    _check_weights(path / WEIGHTS, weights, transformer, config)
    if config.model.adapter is None:
        transformer.load_state_dict(weights)
    else:
        load_adapter_state(transformer, weights)
    return family, transformer.eval()


def _check_weights(path: Path, weights: dict, transformer: torch.nn.Module, config: Config) -> None:
    wanted = transformer.state_dict() if config.model.adapter is None else adapter_state(transformer)
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if shapes != found:
        name = min(set(shapes.items()) ^ set(found.items()))[0]
        raise InputError(
            f"{path}: `{name}` is {found.get(name, 'not there')}, this configuration's model has "
            f"{shapes.get(name, 'no such tensor')}: it is a checkpoint of another model; change model.* back"
        )
