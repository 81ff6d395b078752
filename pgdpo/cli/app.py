"""The application, and what its commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from pgdpo.files.locations import expanded
from pgdpo.messages.console import ours_alone
from pgdpo.messages.errors import Interrupted

_HOME = re.compile(r"(^|(?<==))~[^/=]*/")  # where a word, or what stands behind its `=`, begins


# Of `pgdpo --help`, in the order of the road; the commands of each stand in the file of its name.
BEGIN, DATA, TRAIN, LOOK, TOOLS = PANELS = ("Begin", "Data", "Train", "Look", "Tools")


class Commands(TyperGroup):
    def list_commands(self, ctx: typer.Context) -> list[str]:
        """By panel, in each as its file has them."""
        return sorted(self.commands, key=lambda name: PANELS.index(self.commands[name].rich_help_panel))

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """A shell expands `~/` only where a word begins with it, unquoted: not in `--out=~/x`."""
        return super().parse_args(ctx, [_HOME.sub(lambda home: expanded(home[0]), word) for word in args])

    def invoke(self, ctx: typer.Context) -> object:
        """Ctrl-C leaves as an exception of ours: what typer makes of it says nothing, and changed over its versions."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


class Command(TyperCommand):
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """What lacks, or can't be read, is said with what it is and an example."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            example = (self.help or "").partition("Example:")[2].strip()
            parts = (
                error.message,
                getattr(error.param, "help", ""),
                f"Example: {example}" if example else "",
            )
            error.message = "\n".join(filter(None, parts))
            raise

    def invoke(self, ctx: typer.Context) -> object:
        """Imports stand inside the commands: what they print is not ours."""
        with ours_alone():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    help="Align video diffusion models with human preferences: Diffusion-DPO, PG-DPO and their family.\n\n"
    "New here: `pgdpo doctor`, then `pgdpo quickstart`. With data of your own: import, init, check, plan, prepare, "
    "train, evaluate. `pgdpo COMMAND -h` shows an example of each.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="YAML file, or the name of one that ships (quickstart.yaml)."),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, or the configuration file that it was trained with (and name=..., if that was typed).",
    ),
]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs over all nodes.")]
Nodes = Annotated[int, typer.Option(min=1, help="Hosts that they are in.")]
Gpu = Annotated[
    str | None, typer.Option(help="RTX 4090, A100 40GB, H100, ...; by default this machine's, else H100.")
]
GpuMemory = Annotated[float | None, typer.Option(min=0.001, help="GB of one GPU, in place of --gpu's.")]
StepOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|best",
        help="The checkpoint of this step, or the best by the run's train.keep_best, in place of the newest one.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Folder for what is written, in place of the run's own, which may be read-only."),
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


def command(panel: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """Registers a command in a panel of `pgdpo --help`, under its function's name or another."""
    return app.command(name, cls=Command, rich_help_panel=panel)


def load(path: str, overrides: list[str] | None):
    from pgdpo.config.read import load_config

    return load_config(path, overrides)
