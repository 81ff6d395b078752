"""Commands of the data that a run is given. Heavy imports stand inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgdpo.cli.app import DATA, ConfigArgument, Overrides, RunArgument, command, load
from pgdpo.files.atomic import write_json
from pgdpo.files.writable import check_writable, log_in
from pgdpo.messages.console import chatter_to, say
from pgdpo.messages.errors import InputError
from pgdpo.rows.importers import FORMATS, Options


@command(DATA, "import")
def import_(
    format: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(FORMATS)}.",
            metavar="FORMAT",
        ),
    ],
    source: Annotated[str, typer.Argument(help="What was downloaded: a file, a folder, or an fsspec URL.")],
    out: Annotated[str, typer.Argument(help="The manifest to write: .jsonl or .parquet, a path or a URL.")],
    dimension: Annotated[
        str | None, typer.Option(help="videoalign, rapidata: the aspect that decides, such as MQ.")
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option(
            help="best_of_n, rated tables: all, best-worst (the default), or so many pairs per prompt."
        ),
    ] = None,
    groups: Annotated[
        bool,
        typer.Option(
            "--groups",
            help="best_of_n, rated tables, pickapic: a row a prompt with all its clips, best first.",
        ),
    ] = False,
    prompt: Annotated[str | None, typer.Option(help="table: its column of the prompt.")] = None,
    chosen: Annotated[str | None, typer.Option(help="table: its column of the better clip.")] = None,
    rejected: Annotated[str | None, typer.Option(help="table: its column of the worse clip.")] = None,
    a: Annotated[str | None, typer.Option("--a", help="table: its column of the first clip.")] = None,
    b: Annotated[str | None, typer.Option("--b", help="table: its column of the second clip.")] = None,
    winner: Annotated[str | None, typer.Option(help="table: its column that says which is better.")] = None,
    a_wins: Annotated[
        list[str] | None, typer.Option(help="table: a value of the winner that means a.")
    ] = None,
    b_wins: Annotated[
        list[str] | None, typer.Option(help="table: a value of the winner that means b.")
    ] = None,
    tie: Annotated[
        list[str] | None, typer.Option(help="table: a value of the winner that means a tie.")
    ] = None,
    score_a: Annotated[str | None, typer.Option(help="table: its column of a's score, or votes.")] = None,
    score_b: Annotated[str | None, typer.Option(help="table: its column of b's score, or votes.")] = None,
    clip: Annotated[str | None, typer.Option(help="table of rated clips: its column of the clip.")] = None,
    score: Annotated[str | None, typer.Option(help="table of rated clips: its column of the score.")] = None,
    label: Annotated[
        str | None, typer.Option(help="table of rated clips: its column of good or bad, with --groups.")
    ] = None,
    segment_seconds: Annotated[
        float, typer.Option(help="densedpo: seconds of a segment whose times are not given.", min=1e-3)
    ] = 1.0,
    name: Annotated[
        str | None, typer.Option(help="`source` of the rows; the format's name by default.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="`licence` of the rows.")] = None,
    copy: Annotated[
        bool,
        typer.Option("--copy", help="Copy the clips beside the manifest; else they stay where they are."),
    ] = False,
) -> None:
    """Make a manifest of preference data in another format; no field and no row is lost, ties are kept.

    table is for a CSV, TSV, JSON, JSONL or Parquet of your own: its columns are told by their names and values, shown
    as they were read, and where they aren't clear the command line to type is.

    Example: pgdpo import table data/pairs.csv data/train.jsonl --prompt prompt --a video_1 --b video_2 --winner winner
    """
    from pgdpo.rows.importers.command import run_import

    columns = {
        **dict(
            prompt=prompt, chosen=chosen, rejected=rejected, a=a, b=b, winner=winner, clip=clip, score=score
        ),
        "label": label,
        **dict(score_a=score_a, score_b=score_b, a_wins=a_wins, b_wins=b_wins, tie=tie),
    }
    said = {"--pairs": pairs, "--name": name, "--licence": licence}
    more = [part for option, value in said.items() if value is not None for part in (option, value)]
    command = (source, out, *more, *(["--groups"] if groups else []), *(["--copy"] if copy else []))
    options = Options(dimension, pairs, groups, segment_seconds, columns, command)
    run_import(format, source, out, options, name=name, licence=licence, copy=copy)


@command(DATA)
def check(
    config: ConfigArgument,
    overrides: Overrides = None,
    fix: Annotated[
        str | None,
        typer.Option(
            help="A new manifest of data.train: what can be mended is re-encoded or corrected, the rest left out.",
            metavar="MANIFEST",
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything that was found to this file.")] = None,
    show: Annotated[
        Path | None,
        typer.Option(
            help="Write a page (.html) of some pairs of each split, as shot and as the model will see them.",
            metavar="PAGE",
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Hold prepared data against the bytes of every clip and of their own files, also where name, size and "
            "time are as they were.",
        ),
    ] = False,
) -> None:
    """Say everything that is wrong with a configuration and its data at once; exit code 2 if there are errors.

    Looked at: the keys, every row of the manifests, every clip to its last frame, what the objective needs, sizes,
    the adapter's layers, the reward (imported, and called once on noise), prompts' token lengths, prepared data.
    No weight is loaded and nothing is changed; prepared files that were hashed are noted beside them.

    Example: pgdpo check configs/wan21_1.3b.yaml --show check.html --fix data/train-mended.jsonl
    """
    from pgdpo.checking import run_check

    findings = run_check(config, overrides, fix=fix, json_file=json, page=show, full=full)
    if findings.exit_code:
        raise typer.Exit(findings.exit_code)


@command(DATA)
def make(
    kind: Annotated[str, typer.Argument(help="corrupt, guided, masked, real or prompts.")],
    config: ConfigArgument,
    source: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet with id, prompt and video.")],
    out: Annotated[Path, typer.Argument(help="Folder for the clips and their manifest.jsonl.")],
    overrides: Overrides = None,
) -> None:
    """Make preference pairs from real clips or prompts; goes on where it stopped. Under torchrun ranks share the pairs.

    corrupt: frames are shuffled, torn, ...; guided: two clips denoised from one re-noised clip (DenseDPO); masked: a
    box is made anew (LocalDPO); real: real clip against the model's own (Reg-DPO); prompts: against the clip of a
    corrupted prompt (Tango 2).

    Example: pgdpo make guided configs/wan21_1.3b.yaml clips.jsonl pairs evaluate.reward=my_rewards:motion
    """
    loaded = load(config, overrides)
    check_writable(loaded.output_dir, "output_dir")
    check_writable(out, "OUT")
    with chatter_to(loaded.output_dir / "make.log"):
        from pgdpo.making.make import make as make_pairs
        from pgdpo.ranks.joined import joined_ranks

        with joined_ranks() as ranks:
            manifest = make_pairs(kind, loaded, source, out, ranks)
            say(f"made -> {manifest}; train with data.train={manifest}")


@command(DATA)
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


@command(DATA)
def curate(
    config: RunArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Write what was found there as JSON.")] = None,
    implicit_rewards: Annotated[
        bool,
        typer.Option(
            "--implicit-rewards",
            help="Write the trained run's margin of every pair, which data.order can follow.",
        ),
    ] = False,
) -> None:
    """Show what data.select, .weight and .order would do to the prepared pairs, their sources, and a probe for cues.

    Example: pgdpo curate quickstart.yaml 'data.select=[{by: margin, score: total, low: 0.5}]'
    """
    from pgdpo.checkpoints.runs import open_run, run_config

    run = open_run(config, overrides or []) if implicit_rewards else None
    if run and len(run.parts) > 1:
        raise InputError(
            f"--implicit-rewards: {run.folder} is a run of two experts, each with margins of its own noise: name one, "
            f"{' or '.join(str(part.folder) for part in run.parts)}"
        )
    of_run = Path(config).is_dir()
    loaded = run.config if run else run_config(config, overrides or []) if of_run else load(config, overrides)
    with log_in(loaded.run_dir):
        from pgdpo.evaluation.evaluate import implicit_rewards as write_margins
        from pgdpo.training.opening import show_curated

        found = show_curated(loaded)
        if out:
            write_json(out, found)
            say(f"curated -> {out}")
        if run:
            write_margins(run)
            say(f"margins of all pairs -> {run.out / 'implicit_rewards.json'}")
