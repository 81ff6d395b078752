"""The application, and what its commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from pgdpo.files.locations import expanded
from pgdpo.messages.errors import Interrupted

_HOME = re.compile(r"(^|(?<==))~[^/=]*/")  # where a word, or what stands behind its `=`, begins


class Commands(TyperGroup):
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """A shell expands `~/` only where a word begins with it, unquoted: not in `--out=~/x`."""
        return super().parse_args(ctx, [_HOME.sub(lambda home: expanded(home[0]), word) for word in args])

    def invoke(self, ctx: typer.Context) -> object:
        """Ctrl-C leaves as an exception of ours: what typer makes of it says nothing, and changed over its versions."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error


app = typer.Typer(
    cls=Commands,
    help="Align video diffusion models with human preferences: Diffusion-DPO, PG-DPO and their family.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[
    str, typer.Argument(help="YAML file, or the name of one that ships (quickstart.yaml).")
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, or the configuration file that it was trained with (and name=..., if that was typed).",
    ),
]
StepOption = Annotated[
    int | None, typer.Option(min=1, help="The checkpoint of this step, in place of the newest one.")
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


def load(path: str, overrides: list[str] | None):
    from pgdpo.config.read import load_config

    return load_config(path, overrides)
