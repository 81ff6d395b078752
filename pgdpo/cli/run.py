"""Commands of a run, from its configuration to its export. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgdpo.cli.app import ConfigArgument, OutOption, Overrides, RunArgument, StepOption, app, load
from pgdpo.cli.quickstart import whole_way
from pgdpo.files.writable import check_writable, log_in
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="A shipped configuration: wan21_1.3b, hunyuan_video, ...")],
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
    gpus: Annotated[int, typer.Option(min=1, help="GPUs over all nodes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts that they are in.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="RTX 4090, A100 40GB, H100, ...; by default this machine's, else H100.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.001, help="GB of one GPU, in place of --gpu's.")
    ] = None,
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


@app.command()
def plan(
    config: ConfigArgument,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs over all nodes.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts that they are in.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="RTX 4090, A100 40GB, H100, ...; by default this machine's, else H100.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(min=0.001, help="GB of one GPU, in place of --gpu's.")
    ] = None,
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
    from pgdpo.planning.run import show_plan

    where = {"gpus": gpus, "nodes": nodes, "name": gpu, "memory_gb": gpu_memory}
    show_plan(load(config, overrides), **where, mfu=mfu, disk_gb_per_s=disk, as_json=as_json)


@app.command()
def prepare(
    config: ConfigArgument,
    overrides: Overrides = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Read every clip for changes, also those of the same name, size and time as before.",
        ),
    ] = False,
) -> None:
    """Decode the clips, encode them and their prompts, once, into hashed shards; goes on where it stopped.

    Prepared again, it makes only what changed: rows, clips, encoders, sizes.

    Example: pgdpo prepare configs/wan21_1.3b.yaml
    """
    loaded = load(config, overrides)
    with log_in(loaded.run_dir):
        from pgdpo.data.preparing.run import prepare_splits

        prepare_splits(loaded, full=full)


@app.command()
def reference(run: RunArgument, overrides: Overrides = None) -> None:
    """Compute the reference's errors once, for train.reference: cached; goes on where it stopped.

    Example: torchrun --nproc-per-node 8 -m pgdpo reference configs/wan21_1.3b.yaml train.cached_draws=8
    """
    from pgdpo.checkpoints.runs import run_config

    config = run_config(run, overrides or [])
    with log_in(config.run_dir):
        from pgdpo.training.reference_errors import compute_errors

        folder = compute_errors(config)
        say(f"reference errors -> {folder}; train with train.reference=cached")


@app.command()
def train(
    run: RunArgument,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the newest valid checkpoint, as the run was trained; begin if there is none.",
        ),
    ] = False,
    step: Annotated[
        int | None,
        typer.Option(min=1, help="With --resume: go on from this step; what came after it is set aside."),
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
    from pgdpo.checkpoints.runs import resumed_config

    if not resume:
        _only_with_resume(
            {"--step": step, "--allow-change": allow_change, "the run's folder": Path(run).is_dir()}, run
        )
    elif restart:
        raise InputError("--resume and --restart are both given: the one goes on, the other begins anew")
    allowed = allow_change or []
    config = resumed_config(run, overrides or [], allowed, step=step) if resume else load(run, overrides)
    with log_in(config.run_dir):
        from pgdpo.training.trainer import Trainer

        Trainer(config).train(
            resume=resume, restart=restart, step=step, fallback=fallback, allow_change=allowed
        )


def _only_with_resume(given: dict[str, object], run: str) -> None:
    for name, value in given.items():
        if value:
            raise InputError(
                f"{name} is given without --resume: `pgdpo train {run} --resume` goes on with a run"
            )


@app.command()
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    step: StepOption = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Several: `all` that are kept, or such as 100,200; the report draws them."),
    ] = None,
    out: OutOption = None,
) -> None:
    """Sample reference and aligned model at equal seeds, score both, write results.json and report.html.

    On several ranks these share the clips, which are the same on any number; goes on where it stopped.

    Example: torchrun --nproc-per-node 8 -m pgdpo evaluate runs/wan21_1.3b/pg_dpo --steps all evaluate.num_prompts=8
    """
    from pgdpo.checkpoints.runs import open_run, open_steps

    if step is not None and steps is not None:
        raise InputError("--step and --steps are both given: give one of them")
    if steps is None:
        runs = [open_run(run, overrides or [], step=step, out=out)]
    else:
        runs = open_steps(run, overrides or [], steps, out=out)
    with log_in(runs[-1].config.run_dir, runs[-1].out):
        from pgdpo.evaluation.run import evaluate_and_report

        evaluate_and_report(*runs)


@app.command()
def report(
    run: RunArgument,
    overrides: Overrides = None,
    step: StepOption = None,
    out: OutOption = None,
) -> None:
    """Show the training pairs as the model receives them, and what there is of the run: one HTML file. At any time.

    Example: pgdpo report quickstart.yaml evaluate.report_pairs=40
    """
    from pgdpo.checkpoints.runs import open_run, run_config

    if step is None:
        config = run_config(run, overrides or [], must=True)
    else:
        config = open_run(run, overrides or [], step=step, out=out).config
    check_writable(out or config.run_dir)
    with log_in(config.run_dir, out):
        from pgdpo.report.run import report_run

        report_run(config, step=step, out=out)


@app.command()
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
    from pgdpo.checkpoints.runs import open_run

    opened = open_run(run, overrides or [], step=step, out=out)
    with log_in(opened.config.run_dir, opened.out):
        from pgdpo.checkpoints.export import export as export_run

        folder = export_run(opened, tuple(formats))
        say(f"exported step {opened.step} -> {folder}")


@app.command()
def runs(
    where: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="A folder of runs, or above such folders; or a configuration."),
    ] = ".",
) -> None:
    """List runs: steps, objective, state, and the newest figures of training and evaluation.

    Example: pgdpo runs runs/quickstart
    """
    from pgdpo.report.listing import show_runs

    show_runs(where)


@app.command()
def quickstart(
    overrides: Overrides = None,
    objective: Annotated[str, typer.Option(help="pg_dpo, or dpo for the comparison.")] = "pg_dpo",
    config: Annotated[
        str | None, typer.Option(help="The configuration that is run; by default the one that ships.")
    ] = None,
) -> None:
    """The whole way on the toy world: clips, prepare, train, export, evaluate, report. No download, no GPU.

    Example: pgdpo quickstart --objective dpo
    """
    from pgdpo.config.read import shipped_configs

    file = config or str(shipped_configs()["quickstart.yaml"])
    whole_way(load(file, [f"objective.name={objective}", *(overrides or [])]))


@app.command()
def study(
    config: Annotated[
        str | None, typer.Argument(help="A study's YAML file; by default the study.yaml that ships.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train and evaluate a list of objectives at equal budget over seeds, and compare them; goes on where it stopped.

    Example: pgdpo study study.yaml seeds=[0] changes=[train.steps=60]
    """
    from pgdpo.config.read import load_study, shipped_configs

    loaded = load_study(config or shipped_configs()["study.yaml"], overrides)
    from pgdpo.evaluation.study import run_study

    run_study(*loaded)
