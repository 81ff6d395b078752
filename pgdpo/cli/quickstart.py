"""`pgdpo quickstart`: the whole way on the toy world, by the functions that the single commands call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from pgdpo.cli.app import BEGIN, Overrides, command, load
from pgdpo.files.writable import log_in
from pgdpo.messages.console import console, say

if TYPE_CHECKING:
    from pgdpo.config import Config


def whole_way(config: Config) -> None:
    """prepare, train, export, evaluate; ends with a table and the report's path. Finished steps are not repeated."""
    started = time.perf_counter()
    with log_in(config.run_dir):
        from pgdpo.checkpoints.export import export
        from pgdpo.checkpoints.runs import open_run
        from pgdpo.data.preparing.run import prepare_splits
        from pgdpo.evaluation.run import evaluate_and_report
        from pgdpo.evaluation.summary import summary_table
        from pgdpo.training.trainer import Trainer

        say(f"  toy clips and manifests in {config.output_dir / 'toy'}", first="1/4 prepare", style="bold")
        prepare_splits(config)
        say(f"    {config.objective['name']} in {config.run_dir}", first="2/4 train", style="bold")
        Trainer(config).train(resume=True)
        say("   the adapter, for diffusers", first="3/4 export", style="bold")
        run = open_run(config)
        say(f"exported step {run.step} -> {export(run, ('diffusers',))}")
        say(" reference against aligned, equal seeds", first="4/4 evaluate", style="bold")
        results = evaluate_and_report(run)
        console.print(summary_table(results))
    seconds = time.perf_counter() - started
    say(f"{seconds:.0f} s in all. Open the report: {(config.run_dir / 'report.html').resolve()}")
    say(
        "With pairs of your own: `pgdpo init wan21_1.3b my_run.yaml --train pairs.jsonl`, which names what comes next"
    )


@command(BEGIN)
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
