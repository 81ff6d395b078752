"""Checkpoints that are whole or not there: a temporary folder, a manifest of SHA-256 hashes, one rename."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pgdpo.console import is_main_rank, say
from pgdpo.data.files import fsync, sha256_of, write_json
from pgdpo.errors import InputError
from pgdpo.models.adapter import adapter_state

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
STATE = "state.json"


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step-*"))


def save_checkpoint(
    engine: deepspeed.DeepSpeedEngine, run_dir: Path, step: int, state: dict, *, keep: int
) -> Path:
    """Write one checkpoint and publish it by a rename; then remove all but the newest `keep`.

    It holds DeepSpeed's own files (read by the same run only, after their hashes were checked), the trained weights
    as safetensors, and `state` as JSON. Every rank must call it.
    """
    final = run_dir / "checkpoints" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    if is_main_rank():
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(temporary), tag="engine", save_latest=False, exclude_frozen_parameters=True)
    weights = trained_weights(engine)
    if is_main_rank():
        save_file(weights, temporary / WEIGHTS)
        write_json(temporary / STATE, {"step": step, "world_size": dist.get_world_size(), **state})
    dist.barrier()
    if is_main_rank():
        _publish(temporary, final)
        for old in checkpoints_of(run_dir)[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def trained_weights(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """The adapter's tensors, or all weights where there is none; gathered from the ranks under ZeRO-3."""
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(trained, enabled=engine.zero_optimization_stage() == 3):
        if not is_main_rank():
            return {}
        if getattr(engine.module, "peft_config", None):
            return {name: tensor.clone() for name, tensor in adapter_state(engine.module).items()}
        return {name: t.detach().cpu().clone().contiguous() for name, t in engine.module.state_dict().items()}


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, path: Path, expected: dict) -> dict:
    """Put a verified checkpoint into the engine. Returns its state: `step`, `objective_state`, ...

    Raises InputError if it is of another model or data set, or was written by another number of ranks.
    """
    state = read_state(path)
    for key, value in expected.items():
        if state.get(key) != value:
            raise InputError(
                f"{path}: its {key} is {state.get(key)!r}, this configuration's is {value!r}: it is a checkpoint of "
                "another run; change the configuration back, or start anew with --restart or another `name`"
            )
    if state["world_size"] != dist.get_world_size():
        raise InputError(
            f"{path}: written by {state['world_size']} ranks, started with {dist.get_world_size()}: start it with "
            f"{state['world_size']}"
        )
    engine.load_checkpoint(str(path), tag="engine", load_module_strict=False)
    return state


def read_state(path: Path) -> dict:
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint whose files all have their hashes; damaged ones are named and passed over."""
    for path in reversed(checkpoints_of(run_dir)):
        damage = find_damage(path)
        if damage is None:
            return path
        say(f"[yellow]checkpoint {path} is damaged: {damage}; falling back to the one before[/]")
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file is there with its hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, digest in manifest["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of(path / name) != digest:
            return f"{name} has another SHA-256 than the manifest says"
    return None


def _publish(temporary: Path, final: Path) -> None:
    files = sorted(file for file in temporary.rglob("*") if file.is_file())
    hashes = {str(file.relative_to(temporary)): sha256_of(file) for file in files}
    for file in files:
        fsync(file)
    write_json(temporary / MANIFEST, {"sha256": hashes})
    fsync(temporary)
    if final.exists():  # the same step again: the old copy stays valid until the new one stands
        retired = final.with_name(f".{final.name}.old")
        os.replace(final, retired)
        os.replace(temporary, final)
        shutil.rmtree(retired)
    else:
        os.replace(temporary, final)
    fsync(final.parent)
