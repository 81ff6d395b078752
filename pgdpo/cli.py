"""The command line: one short function per command. Heavy imports stand inside the commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pgdpo import __version__
from pgdpo.errors import InputError

app = typer.Typer(
    help="Align video diffusion models with human preferences: Diffusion-DPO, PG-DPO and their family.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[
    str, typer.Argument(help="YAML file, or the name of one that ships (quickstart.yaml).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the file, such as train.learning_rate=1e-5.", metavar="[KEY=VALUE]..."),
]


@app.callback()
def _options(
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Taken because the deepspeed launcher passes it before the command; its environment says the same."""


def _load(path: str, overrides: list[str] | None):
    from pgdpo.config import load_config

    return load_config(path, overrides)


@app.command()
def prepare(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Decode the clips, encode them and their prompts, once, into hashed shards; goes on where it stopped.

    Example: pgdpo prepare configs/wan21_1.3b.yaml
    """
    from pgdpo.pipeline import run_prepare

    run_prepare(_load(config, overrides))


@app.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest valid checkpoint.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Remove this run's checkpoints first.")] = False,
) -> None:
    """Train the configured objective on the prepared pairs.

    Example: torchrun --nproc-per-node 8 -m pgdpo train configs/wan21_1.3b.yaml train.zero_stage=2
    """
    from pgdpo.pipeline import run_train

    run_train(_load(config, overrides), resume=resume, restart=restart)


@app.command()
def evaluate(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Sample reference and aligned model at equal seeds, score both, write results.json and report.html.

    Example: pgdpo evaluate quickstart.yaml evaluate.num_prompts=8
    """
    from pgdpo.pipeline import run_evaluate

    run_evaluate(_load(config, overrides))


@app.command()
def export(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Write the trained weights as safetensors under diffusers' names.

    Example: pgdpo export quickstart.yaml
    """
    from pgdpo.pipeline import run_export

    run_export(_load(config, overrides))


@app.command()
def quickstart(
    overrides: Overrides = None,
    objective: Annotated[str, typer.Option(help="pg_dpo, or dpo for the comparison.")] = "pg_dpo",
    config: Annotated[str, typer.Option(help="The configuration that is run.")] = "quickstart.yaml",
) -> None:
    """The whole way on the toy world: clips, prepare, train, export, evaluate, report. No download, no GPU.

    Example: pgdpo quickstart --objective dpo
    """
    from pgdpo.pipeline import run_quickstart

    run_quickstart(_load(config, [f"objective.name={objective}", *(overrides or [])]))


@app.command()
def study(
    config: Annotated[str, typer.Argument(help="A study's YAML file, or the one that ships.")] = "study.yaml",
    overrides: Overrides = None,
) -> None:
    """Train and evaluate a list of objectives at equal budget over seeds, and compare them; goes on where it stopped.

    Example: pgdpo study study.yaml seeds=[0] changes=[train.steps=60]
    """
    from pgdpo.config import load_study

    loaded = load_study(config, overrides)
    from pgdpo.study import run_study

    run_study(*loaded)


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="One objective, shown in full with its formula.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole catalogue as Markdown.")] = False,
) -> None:
    """List the objectives: paper, options, what data each needs, how sure its formula is.

    Example: pgdpo objectives pg_dpo
    """
    from pgdpo.console import console
    from pgdpo.objectives import docs, listing

    if markdown:
        print(docs.markdown(), end="")
        return
    console.print(listing.page(name) if name else listing.table(), soft_wrap=False)


@app.command()
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="Ops to measure; all by default.")] = None,
    minutes: Annotated[float, typer.Option(help="No further case is started after so many minutes.")] = 9.0,
    tests: Annotated[bool, typer.Option(help="Test the kernels on the device before they are timed.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="The JSON; by default benchmarks/results/<device>-<date>.json.")
    ] = None,
) -> None:
    """Measure the fused ops on a GPU: JSON, table and roofline. Without one, print the bytes that they must move.

    Example: pgdpo bench pair_errors --minutes 2
    """
    checkout = Path(__file__).parent.parent
    if not (checkout / "benchmarks" / "suite.py").is_file():
        raise InputError(
            f"{checkout / 'benchmarks'}: not there: the benchmarks run from a checkout of the repository"
        )
    sys.path.insert(0, str(checkout))
    from benchmarks.suite import run

    try:
        run(ops=ops, minutes=minutes, tests=tests, out=out)
    except ValueError as error:
        raise InputError(str(error)) from error


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Entry point: bad input is one message and exit code 2."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Other ranks may wait in a collective for this one: leave without joining them.
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            os._exit(2)
        sys.exit(2)
