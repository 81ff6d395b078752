"""Commands that show what there is, and what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pgdpo.cli.app import TOOLS, app, command
from pgdpo.messages.console import console, put
from pgdpo.messages.errors import InputError
from pgdpo.version import __version__


@command(TOOLS)
def doctor(
    folder: Annotated[Path, typer.Argument(help="Where runs will be written.")] = Path("runs"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the findings there as well.")
    ] = None,
) -> None:
    """Examine this machine: drivers, versions, kernels, attention, NCCL, disk. Ends with 1 if something is wrong.

    Example: pgdpo doctor /mnt/runs --json doctor.json
    """
    from pgdpo.checking.doctor import as_json, examine, show

    findings = examine(folder)
    if json_file:
        from pgdpo.files.atomic import write_json

        write_json(json_file, as_json(findings))
    if not show(findings):
        raise typer.Exit(1)


@command(TOOLS)
def options(
    word: Annotated[
        str | None, typer.Argument(metavar="WORD", help="Show the keys that hold it, in name or description.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All keys as Markdown.")] = False,
) -> None:
    """Every configuration key: what it takes, its default, what it does.

    Example: pgdpo options checkpoint
    """
    from pgdpo.config import options as tables

    if markdown:
        put(tables.markdown())
    else:
        console.print(tables.listing(word), soft_wrap=False)


@command(TOOLS)
def objectives(
    name: Annotated[str | None, typer.Argument(help="One objective, shown in full with its formula.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole catalogue as Markdown.")] = False,
) -> None:
    """List the objectives by how they stand, a line each; or show one: formula, options, the data it needs, sources.

    Example: pgdpo objectives pg_dpo
    """
    from pgdpo.objectives.catalogue import docs, listing

    if markdown:
        put(docs.markdown())
    else:
        console.print(listing.page(name) if name else listing.overview(), soft_wrap=False)


@app.command(rich_help_panel=TOOLS)  # its terminal is that of pytest and of the measurements
def bench(
    ops: Annotated[list[str] | None, typer.Argument(help="Only smoke and speed of these ops.")] = None,
    minutes: Annotated[float, typer.Option(help="For everything.")] = 9.0,
    start: Annotated[str, typer.Option("--from", help="The stage to begin with.")] = "smoke",
    out: Annotated[
        Path | None, typer.Option(help="Folder; by default benchmarks/results/<device>-<date>.")
    ] = None,
) -> None:
    """`python -m benchmarks.gpu`: test and time everything on a GPU. Without one, print the bytes that ops must move.

    Example: pgdpo bench pair_errors --minutes 2
    """
    checkout = Path(__file__).parents[2]
    if not (checkout / "benchmarks" / "gpu").is_dir():
        raise InputError(
            f"{checkout / 'benchmarks'}: not there: the benchmarks run from a checkout of the repository"
        )
    sys.path.insert(0, str(checkout))
    from benchmarks.gpu.__main__ import run

    try:
        code = run(ops=ops, minutes=minutes, start=start, out=out)
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error
    if code:
        raise typer.Exit(code)


@command(TOOLS)
def version() -> None:
    """Print the version."""
    put(f"{__version__}\n")
