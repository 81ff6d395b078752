"""Commands of training, from a configuration to an export. Heavy imports stand inside the commands."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from pgdpo.cli.app import (
    TRAIN,
    ConfigArgument,
    Gpu,
    GpuMemory,
    Gpus,
    Nodes,
    OutOption,
    Overrides,
    RunArgument,
    StepOption,
    command,
    load,
)
from pgdpo.files.writable import log_in
from pgdpo.messages.console import said_to_stderr, say
from pgdpo.messages.errors import InputError


@command(TRAIN)
def init(
    model: Annotated[
        str,
        typer.Argument(
            help="A shipped configuration (wan21_1.3b, hunyuan_video, ...), or a model's diffusers folder or hub id."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    path: Annotated[str | None, typer.Option(help="The model's diffusers folder or hub id.")] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="The manifest to train on; its clips decide rate, frames and sizes.", metavar="FILE"
        ),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            help="The manifest of pairs that are never trained on, or a share of --train's prompts, such as 0.05.",
            metavar="FILE|SHARE",
        ),
    ] = None,
    media_root: Annotated[
        Path | None, typer.Option(help="Folder that clips may lie in besides the manifests' own.")
    ] = None,
    gpus: Gpus = 1,
    nodes: Nodes = 1,
    gpu: Gpu = None,
    gpu_memory: GpuMemory = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented configuration for a model, fitted to one's clips and GPUs.

    Clips are looked at (up to 200, spread over the manifests) for the rate, frames and sizes to train at.

    Example: pgdpo init wan21_14b my_run.yaml --train pairs.jsonl --held-out 0.05 --gpus 8 --gpu H100
    """
    from pgdpo.recipes.write import write_and_say

    where = {"gpus": gpus, "nodes": nodes, "name": gpu, "memory_gb": gpu_memory}
    data = {"train": train, "held_out": held_out, "media_root": media_root}
    write_and_say(model, out, path=path, **data, where=where, force=force)


@command(TRAIN)
def plan(
    config: ConfigArgument,
    overrides: Overrides = None,
    gpus: Gpus = 1,
    nodes: Nodes = 1,
    gpu: Gpu = None,
    gpu_memory: GpuMemory = None,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the GPUs' peak that a step is taken to reach.")
    ] = 0.35,
    disk: Annotated[float, typer.Option(min=0.01, help="GB a second that checkpoints are written at.")] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, all numbers in bytes and seconds.")
    ] = False,
) -> None:
    """Work out memory, time and disk of a run and its evaluation, before any weight is loaded; exit code 2 if the run
    does not fit the GPUs or the disk.

    Example: pgdpo plan wan21_1.3b.yaml --gpus 8 --gpu H100 train.zero_stage=3
    """
    where = {"gpus": gpus, "nodes": nodes, "name": gpu, "memory_gb": gpu_memory}
    with said_to_stderr() if as_json else contextlib.nullcontext():
        loaded = load(config, overrides)
        from pgdpo.planning.run import show_plan

        show_plan(loaded, **where, mfu=mfu, disk_gb_per_s=disk, as_json=as_json)


@command(TRAIN)
def reference(run: RunArgument, overrides: Overrides = None) -> None:
    """Compute the reference's errors once, for train.reference: cached; goes on where it stopped.

    Example: torchrun --nproc-per-node 8 -m pgdpo reference configs/wan21_1.3b.yaml train.cached_draws=8
    """
    from pgdpo.checkpoints.runs import run_config

    config = run_config(run, overrides or [])
    with log_in(config.run_dir):
        from pgdpo.training.reference_errors import compute_errors

        for part in config.parts:
            say(f"reference errors -> {compute_errors(part)}; train with train.reference=cached")


@command(TRAIN)
def train(
    run: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file, or the name of one that ships (quickstart.yaml); `pgdpo init` writes one. With --resume "
            "also the run's folder.",
        ),
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest valid checkpoint, as the run was trained; begin if there is none.",
        ),
    ] = False,
    step: Annotated[
        str | None,
        typer.Option(
            metavar="N|best",
            help="With --resume: go on from this step, or the best; what came after it is set aside.",
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Remove this run's checkpoints first.")] = False,
    fallback: Annotated[
        bool,
        typer.Option(" /--no-fallback", help="With --resume: refuse if the newest checkpoint is damaged."),
    ] = True,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(help="With --resume: a key that may have changed, such as train.learning_rate."),
    ] = None,
) -> None:
    """Train the configured objective on the prepared pairs.

    Example: torchrun --nproc-per-node 8 -m pgdpo train configs/wan21_1.3b.yaml train.zero_stage=2
    """
    from pgdpo.checkpoints.runs import resumed_config, step_named

    if not resume:
        _only_with_resume(
            {"--step": step, "--allow-change": allow_change, "the run's folder": Path(run).is_dir()}, run
        )
    elif restart:
        raise InputError("--resume and --restart are both given: the one goes on, the other begins anew")
    allowed, overrides = allow_change or [], overrides or []
    number = step_named(run, overrides, step)
    config = resumed_config(run, overrides, allowed, step=number) if resume else load(run, overrides)
    how = {"resume": resume, "restart": restart, "fallback": fallback, "allow_change": allowed}
    if config.expert != "both":
        with log_in(config.run_dir):
            from pgdpo.training.trainer import Trainer

            Trainer(config).train(step=number, **how)
        return
    with log_in(config.run_dir):
        from pgdpo.training.experts import train_experts

        train_experts(config, **how)


def _only_with_resume(given: dict[str, object], run: str) -> None:
    for name, value in given.items():
        if value:
            raise InputError(
                f"{name} is given without --resume: `pgdpo train {run} --resume` goes on with a run"
            )


@command(TRAIN)
def export(
    run: RunArgument,
    overrides: Overrides = None,
    formats: Annotated[
        list[str],
        typer.Option(
            "--format", help="diffusers, comfyui (LoRA names that ComfyUI reads), merged; may be repeated."
        ),
    ] = ["diffusers"],  # noqa: B006 (typer reads it once)
    step: StepOption = None,
    out: OutOption = None,
) -> None:
    """Write the trained weights as safetensors, with a model card.

    Example: pgdpo export quickstart.yaml --format diffusers --format comfyui
    """
    from pgdpo.checkpoints.runs import Run, open_run, step_named

    overrides = overrides or []
    opened = open_run(run, overrides, step=step_named(run, overrides, step), out=out)
    with log_in(opened.config.run_dir, opened.out):
        from pgdpo.checkpoints import export as exports

        form = exports.export if isinstance(opened, Run) else exports.export_both
        folder = form(opened, tuple(formats))
        say(f"exported step {' and '.join(str(part.step) for part in opened.parts)} -> {folder}")
