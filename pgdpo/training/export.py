"""The newest checkpoint's weights as safetensors, for diffusers and for ComfyUI, with a model card."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pgdpo.data.files import atomic_path
from pgdpo.errors import InputError
from pgdpo.models.adapter import adapter_metadata, adapter_state, load_adapter_state
from pgdpo.models.comfyui import NAMES, comfyui_state
from pgdpo.settings import Config
from pgdpo.training.checkpoint import check_shapes, read_weights
from pgdpo.training.model_card import write_model_card
from pgdpo.training.policy import build_policy
from pgdpo.training.published import latest_checkpoint

FORMATS = ("diffusers", "comfyui", "merged")


def export(config: Config, formats: tuple[str, ...] = ("diffusers",)) -> Path:
    """Write `run_dir/export`, a model card among it, and return the folder.

    `diffusers`: a LoRA for the pipeline's `load_lora_weights`, or the whole `transformer/` where all weights were
    trained; `comfyui`: the LoRA under ComfyUI's names; `merged`: a `transformer/` with the LoRA in its weights.
    Raises InputError if the run has no valid checkpoint or one of another model, and for a format that does not exist
    or does not fit, before anything is written.
    """
    _check_formats(config, formats)
    family, transformer = load_trained(config)
    folder, adapter = config.run_dir / "export", config.model.adapter
    if adapter is None:
        transformer.save_pretrained(folder / family.transformer_folder)
    else:
        state = adapter_state(transformer)
        if "comfyui" in formats:
            named = comfyui_state(config.model.family, transformer, state, adapter.alpha / adapter.rank)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / f"{config.run_dir.name}-comfyui.safetensors") as temporary:
                save_file(named, temporary, metadata={"format": "pt"})
        if "diffusers" in formats:
            family.save_adapter(folder, state, adapter_metadata(transformer))
        if "merged" in formats:
            transformer.fuse_lora(safe_fusing=True)
            transformer.unload_lora()
            transformer.save_pretrained(folder / family.transformer_folder)
    write_model_card(config, folder)
    return folder


def _check_formats(config: Config, formats: tuple[str, ...]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(f"--format is {', '.join(unknown) or 'empty'}: allowed are {', '.join(FORMATS)}")
    if config.model.adapter is None and formats != ("diffusers",):
        raise InputError(
            f"--format is {', '.join(formats)}, but all weights were trained (model.adapter is empty): there is no "
            "LoRA to rename or merge; `--format diffusers` writes the whole transformer"
        )
    if "comfyui" in formats and config.model.family not in NAMES:
        raise InputError(
            f"--format is comfyui: ComfyUI names are known for {', '.join(sorted(NAMES))}, not for "
            f"`{config.model.family}`; its ComfyUI wrappers read what `--format diffusers` writes"
        )


def load_trained(config: Config, device: torch.device | None = None):
    """(model family, transformer with the newest checkpoint's weights, in eval mode)."""
    path = latest_checkpoint(config.run_dir)
    if path is None:
        raise InputError(
            f"{config.run_dir}: holds no valid checkpoint: run `pgdpo train` with this configuration first"
        )
    family, transformer = build_policy(config, device or torch.device("cpu"))
    weights = read_weights(path)
    wanted = transformer.state_dict() if config.model.adapter is None else adapter_state(transformer)
    check_shapes(path, _shapes(wanted), _shapes(weights))
    if config.model.adapter is None:
        transformer.load_state_dict(weights)
    else:
        load_adapter_state(transformer, weights)
    return family, transformer.eval()


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
