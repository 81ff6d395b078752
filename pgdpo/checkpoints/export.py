"""A checkpoint's weights as safetensors, for diffusers and for ComfyUI, with a model card."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import save_file

from pgdpo.checkpoints.checkpoint import check_shapes
from pgdpo.checkpoints.identity import base_identity, told_rounded
from pgdpo.checkpoints.model_card import CARD, MARK, write_model_card
from pgdpo.checkpoints.published import checkpoints_of, step_of
from pgdpo.checkpoints.runs import Both, Run
from pgdpo.checkpoints.shards import ShardReader
from pgdpo.config import PARTS, Config, families, family_class
from pgdpo.engine.policy import build_policy
from pgdpo.files.atomic import as_opened
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.adapters.adapter import adapter_metadata, adapter_state, load_adapter_state
from pgdpo.models.adapters.comfyui import comfyui_state
from pgdpo.models.family import Family
from pgdpo.models.weights.stored_dtypes import stored_dtypes

FORMATS = ("diffusers", "comfyui", "merged")


def export(run: Run, formats: tuple[str, ...] = ("diffusers",)) -> Path:
    """Write a run's checkpoint to `export/` in `run.out`, a model card among it, and return the folder.

    `diffusers`: a LoRA in fp32 for the pipeline's `load_lora_weights`, or the whole `transformer/` where all weights
    were trained, in the dtypes of the base model's files; `comfyui`: the LoRA under ComfyUI's names; `merged`: a
    `transformer/` with the LoRA in its weights, added in fp32 and written in those dtypes. What an earlier export left
    there in other formats is removed: the folder holds one step. Raises InputError for a checkpoint of another model,
    and for a format that does not exist or does not fit, before anything is written.
    """
    _check_formats(run.config, formats)
    folder = export_folder(run)
    _check_target(run, folder)
    family, transformer = load_trained(_to_write(run, merged="merged" in formats))
    new = _new(folder)
    _write(run, family, transformer, formats, new)
    write_model_card(run, new)
    as_opened(new)
    _replace(folder, new)
    return folder


def _to_write(run: Run, *, merged: bool) -> Run:
    """The run as if it needed no GPU: nothing is computed here, so that no kernel or attention backend need be there.

    `merged`: as if it were of fp32. Beside a LoRA the base is held in bf16, and what is added to that is rounded.
    """
    plain = {"kernels": "eager", "attention": "native", "reference_attention": None}
    model = run.config.model.model_copy(update=plain)
    train = run.config.train.model_copy(update={"precision": "fp32"} if merged else {})
    return replace(run, config=run.config.model_copy(update={"model": model, "train": train}))


def export_both(both: Both, formats: tuple[str, ...] = ("diffusers",)) -> Path:
    """As `export`, of both experts, one in memory at a time, into one folder.

    `diffusers`: a LoRA each in `high_noise/` and `low_noise/`, or `transformer/` and `transformer_2/` where all weights
    were trained; `comfyui`: a file each; `merged`: both transformers. The model card has the lines that load them.
    """
    _check_formats(both.config, formats)
    folder = export_folder(both)
    _check_target(both, folder)
    for run in both.parts:
        check_trained(run)
    new = _new(folder)
    for expert, run in both.experts.items():
        family, transformer = load_trained(_to_write(run, merged="merged" in formats))
        _write(run, family, transformer, formats, new, expert)
        del transformer
    write_model_card(both, new)
    as_opened(new)
    _replace(folder, new)
    return folder


def _new(folder: Path) -> Path:
    """An empty folder beside it, which takes its place when it is whole."""
    new = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    return new


def _write(
    run: Run,
    family: Family,
    transformer: torch.nn.Module,
    formats: tuple[str, ...],
    folder: Path,
    expert: str = "",
) -> None:
    """`expert`: of a run of both, whose weights they are."""
    adapter = run.config.model.adapter
    if adapter is None:
        _save_transformer(family, transformer, folder)
        return
    state = adapter_state(transformer)
    if "comfyui" in formats:
        named = comfyui_state(family.comfyui, transformer, state, adapter.alpha / adapter.rank)
        name = run.config.run_name.replace("/", "-")
        save_file(named, folder / f"{name}-comfyui.safetensors", metadata={"format": "pt"})
    if "diffusers" in formats:
        family.save_adapter(folder / expert, state, adapter_metadata(transformer))
    if "merged" in formats:
        transformer.fuse_lora(safe_fusing=True)
        transformer.unload_lora()
        _save_transformer(family, transformer, folder)


def _save_transformer(family: Family, transformer: torch.nn.Module, folder: Path) -> None:
    """Each tensor in the dtype that it has in the base model's files, where it is held in a wider one."""
    own = stored_dtypes(family)
    for name, tensor in (*transformer.named_parameters(), *transformer.named_buffers()):
        stored = own.get(name, tensor.dtype)
        if stored.itemsize < tensor.dtype.itemsize:
            tensor.data = tensor.data.to(stored)
    transformer.save_pretrained(folder / family.transformer_folder)


def export_folder(run: Run | Both) -> Path:
    """`run.out` if it is named, else `export/` in the run's folder; of an earlier step than the newest its own."""
    if run.out != run.folder:
        return run.out
    newest = all(part.step == step_of(checkpoints_of(part.folder)[-1]) for part in run.parts)
    own = run.folder / "export"
    return own if newest else own.with_name(f"export-step-{run.step:08d}")


def _check_target(run: Run | Both, folder: Path) -> None:
    """Raises InputError for a named folder with files of others: an export replaces `transformer/`."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    ours = MARK in text and f"\n# {run.folder.name}\n" in text
    strange = [path.name for path in folder.glob("*") if path.suffix != ".log"] if not ours else []
    if run.out != run.folder and strange:
        raise InputError(
            f"--out is {folder}: it holds {min(strange)} and no earlier export of this run: name an empty folder"
        )


def _replace(folder: Path, new: Path) -> None:
    """Put what is whole in place of an earlier export's: of another step or format, it would stand beside this card."""
    folder.mkdir(exist_ok=True)
    for file in (*folder.glob("*-comfyui.safetensors"), folder / LORA_WEIGHT_NAME_SAFE):
        file.unlink(missing_ok=True)
    for name in ("transformer", "transformer_2", *PARTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in new.iterdir():
        os.replace(path, folder / path.name)
    new.rmdir()


def _check_formats(config: Config, formats: tuple[str, ...]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(
            f"--format is {', '.join(unknown) or 'empty'}: allowed are {', '.join(FORMATS)}; for several, repeat it: "
            "--format diffusers --format merged"
        )
    if config.model.adapter is None and formats != ("diffusers",):
        raise InputError(
            f"--format is {', '.join(formats)}, but all weights were trained (model.adapter is empty): there is no "
            "LoRA to rename or merge; `--format diffusers` writes the whole transformer"
        )
    if "comfyui" in formats and not family_class(config.model.family).comfyui:
        known = [name for name in families() if family_class(name).comfyui]
        raise InputError(
            f"--format is comfyui: ComfyUI names are known for {', '.join(known)}, not for "
            f"`{config.model.family}`; its ComfyUI wrappers read what `--format diffusers` writes"
        )


def check_trained(run: Run) -> None:
    """Raises InputError, by files alone, if the model is not the one that the run began with; says so if an earlier
    version told it other numbers than are told now."""
    config = run.config
    as_trained = run.record.model_copy(update={"model": config.model})  # which may lie elsewhere by now
    before, now = run.state["identity"].get("told_rounded"), told_rounded(as_trained).get("told_rounded")
    if before != now:
        say_once(
            f"{run.folder} was trained by an earlier version, whose transformer was told other numbers (then: "
            f"{before or 'none'}; now: {now or 'none'}): clips and figures are of what is told now"
        )
    trained_on, found = run.state["identity"]["model_hash"], base_identity(config, open_family(config.model))
    if found != trained_on:
        key = "path" if config.model.transformer is None else "transformer"
        raise InputError(
            f"model.{key} is {str(getattr(config.model, key))!r}: its weights are others than {run.folder} was trained "
            f"on (model_hash {found}, the run's is {trained_on}): name those with model.{key}=FOLDER"
        )


def load_trained(run: Run, device: torch.device | None = None, **how: Any) -> tuple[Family, torch.nn.Module]:
    """(model family, transformer with the checkpoint's weights, in eval mode); `how`: of `build_policy`.

    Raises InputError if the model is not the one that the run began with.
    """
    check_trained(run)
    config, path, device = run.config, run.checkpoint, device or torch.device("cpu")
    weights = ShardReader(path, "weights")
    if config.model.adapter is None:
        family = open_family(config.model)
        with torch.device("meta"):
            wanted = family.from_architecture(family.architecture()).state_dict()
        check_shapes(path, _shapes(wanted), weights.shapes())
        family, transformer = build_policy(config, device, weights=weights, **how)
    else:
        family, transformer = build_policy(config, device, init=False, **how)
        check_shapes(path, _shapes(adapter_state(transformer)), weights.shapes())
        load_adapter_state(transformer, dict(weights))
    return family, transformer.eval()


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
