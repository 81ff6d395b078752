"""The application, and what its commands share."""

from __future__ import annotations

from typing import Annotated

import typer

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


def load(path: str, overrides: list[str] | None):
    from pgdpo.config import load_config

    return load_config(path, overrides)
