"""Commands that look at what was trained. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgdpo.cli.app import LOOK, OutOption, Overrides, RunArgument, StepOption, command
from pgdpo.files.writable import check_writable, log_in
from pgdpo.messages.errors import InputError


@command(LOOK)
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    step: StepOption = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Several: `all` that are kept, or such as 100,200,best; the report draws them."),
    ] = None,
    out: OutOption = None,
) -> None:
    """Sample reference and aligned model at equal seeds, score both, write results.json and report.html.

    On several ranks these share the clips, which are the same on any number; goes on where it stopped.

    Example: torchrun --nproc-per-node 8 -m pgdpo evaluate runs/wan21_1.3b/pg_dpo --steps all evaluate.num_prompts=8
    """
    from pgdpo.checkpoints.runs import open_run, open_steps, step_named

    overrides = overrides or []
    if step is not None and steps is not None:
        raise InputError("--step and --steps are both given: give one of them")
    if steps is None:
        runs = [open_run(run, overrides, step=step_named(run, overrides, step), out=out)]
    else:
        runs = open_steps(run, overrides, steps, out=out)
    with log_in(runs[-1].config.run_dir, runs[-1].out):
        from pgdpo.evaluation.run import evaluate_and_report

        evaluate_and_report(*runs)


@command(LOOK)
def report(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Changes, such as evaluate.report_pairs=40; or the folders of other runs, to compare with.",
            metavar="[KEY=VALUE | RUN]...",
        ),
    ] = None,
    step: StepOption = None,
    out: OutOption = None,
) -> None:
    """Show the training pairs as the model receives them, and what there is of the run: one HTML file. At any time.

    Of several runs: comparison.html in the current folder or --out.

    Example: pgdpo report runs/quickstart/dpo runs/quickstart/pg_dpo
    """
    from pgdpo.checkpoints.runs import open_run, run_config, step_named

    overrides = overrides or []
    others = [word for word in overrides if "=" not in word]
    if others:
        _compare([run, *others], [word for word in overrides if "=" in word], step, out)
        return
    number = step_named(run, overrides, step)
    if number is None:
        config = run_config(run, overrides, must=True)
    else:
        config = open_run(run, overrides, step=number, out=out).config
    check_writable(out or config.run_dir)
    with log_in(config.run_dir, out):
        from pgdpo.report.run import report_run

        report_run(config, step=number, out=out)


def _compare(runs: list[str], changes: list[str], step: str | None, out: Path | None) -> None:
    for name, given in (("--step", step), *((word, word) for word in changes)):
        if given:
            raise InputError(f"{name} is given beside several runs: it is for one")
    from pgdpo.report.compare import compare_runs

    folder = out or Path()
    check_writable(folder)
    compare_runs([Path(each) for each in runs], folder)


@command(LOOK)
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


@command(LOOK)
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
