"""What each command does, from a checked configuration to files on disk."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from rich.markup import escape

from pgdpo.console import chatter_to, console, progress_bar, say
from pgdpo.data.files import write_json
from pgdpo.data.sources import sources_of
from pgdpo.data.toy import render_dataset
from pgdpo.errors import InputError
from pgdpo.models import open_family
from pgdpo.record import identity_of, read_record
from pgdpo.runs import Run, check_writable, open_run, places_of
from pgdpo.settings import Config, sample_settings
from pgdpo.training.published import at_step


def run_prepare(config: Config, *, full: bool = False) -> None:
    """Clips and prompts of both splits -> `output_dir/prepared/<split>`; `full` as `prepare` takes it."""
    from pgdpo.data.prepare import prepare
    from pgdpo.data.ranks import joined_ranks
    from pgdpo.training.policy import prepared_folder

    for key, folder in places_of(config):
        check_writable(folder, key)
    with _logged(config), joined_ranks() as ranks:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        family = open_family(config.model)
        encoders = family.load_encoders(device)
        ranks.main_first(lambda: _render_toy(config))
        toy = config.output_dir / "toy"
        how_sampled = sample_settings(config.evaluate, family.card, config.data.sizes[0][1:])
        for split in ("train", "held_out"):
            sources = sources_of(config.data, split, toy)
            if not sources:
                continue
            folder = prepared_folder(config, split)
            # Clips are sampled at held-out prompts; what is trained on does not follow from how.
            negative = how_sampled.negative_prompt if split == "held_out" else ""
            how = {"split": split, "toy": toy, "negative": negative, "full": full}
            done = prepare(folder, config.data, family, encoders, ranks, **how)
            texts = [done.index["text"], done.index["negative"]]
            size = sum(entry["bytes"] for entry in [*texts, *done.index["shards"]])
            named = ", ".join(str(source.manifest) for source in sources)
            say(f"prepared {done} of {named} -> {folder} ({size / 1e6:.1f} MB)")


def run_reference(config: Config) -> None:
    """Prepared pairs -> the reference's errors, for runs with `train.reference: cached`."""
    with _logged(config):
        from pgdpo.training.reference_errors import compute_errors

        folder = compute_errors(config)
        say(f"reference errors -> {folder}; train with train.reference=cached")


def run_init(model: str, out: Path, **options) -> None:
    """A shipped configuration -> `out`, fitted to clips and GPUs; `options` as `init` takes them."""
    from pgdpo.init import init

    options["where"] |= {"mfu": 0.35, "disk_gb_per_s": 1.0}
    with chatter_to(Path(os.devnull)):
        begun = init(model, out, **options)
    for line in begun.found:
        say(line)
    for note in begun.notes:
        say(note)
    for key, value in begun.changed.items():
        say(f"  {key}: {value}")
    say(f"written -> {out}; next, in this order:")
    for command in begun.next:
        say(f"  {command}")


def run_make(config: Config, kind: str, source: str, out: Path) -> Path:
    """Real clips or prompts -> pairs and their manifest in `out`."""
    from pgdpo.making.make import make

    check_writable(config.output_dir, "output_dir")
    check_writable(out, "OUT")
    with chatter_to(config.output_dir / "make.log"):
        manifest = make(kind, config, source, out)
        say(f"made -> {manifest}; train with data.train={manifest}")
        return manifest


def run_curate(config: Config, out: Path | None = None, *, run: Run | None = None) -> dict:
    """What `data.select` and `data.weight` keep of the prepared pairs and why, sources, and the probe; as a dict.

    `run`: a trained run whose margins of all pairs are written.
    """
    from pgdpo.data.curation.apply import examine
    from pgdpo.training.policy import open_pairs

    with _logged(config):
        data = open_pairs(config, "train")
        for kept in data.curation:
            say(f"data.select {kept}")
        found = examine(data)
        counts = ", ".join(f"{name}: {count}" for name, count in found["sources"].items())
        say(f"{len(data)} of {len(data.index['pairs'])} pairs are trained on; sources: {counts}")
        say(found["verdict"])
        if out:
            write_json(out, found)
            say(f"curated -> {out}")
        if run:
            from pgdpo.evaluation import evaluate

            evaluate.implicit_rewards(run)
            say(f"margins of all pairs -> {run.out / 'implicit_rewards.json'}")
        return found


def run_train(config: Config, **start: object) -> None:
    """Prepared pairs -> checkpoints, metrics. `start`: how, as `Trainer.train` takes it."""
    with _logged(config):
        from pgdpo.training.loop import Trainer

        trainer = Trainer(config)
        last = trainer.train(**start)
        say(f"trained -> {last}; metrics: {config.run_dir / 'metrics.jsonl'}")


def run_plan(config: Config, *, as_json: bool, **where) -> None:
    """Print what a run needs; `where` as `planning.hardware.machine` takes it.

    Raises InputError if it does not fit the GPUs, or what it writes the disks.
    """
    # A plan leaves no files; what is said on the way to JSON stands beside it.
    with chatter_to(Path(os.devnull), terminal=2 if as_json else 1):
        from pgdpo.planning.advice import changes_that_fit, explain
        from pgdpo.planning.disk import explain_disk
        from pgdpo.planning.hardware import machine
        from pgdpo.planning.plan import Planner
        from pgdpo.planning.table import assumptions, table

        on = machine(**where)
        planner = Planner(config)
        plan = planner.plan(config, on)
        changes = [] if plan.fits else changes_that_fit(planner, config, on)
    if as_json:
        better = [{"settings": change.settings, "plan": change.plan.as_json()} for change in changes]
        print(json.dumps({**plan.as_json(), "changes": better}))
    else:
        console.print(table(plan, escape(f"{config.model.path}, {config.objective['name']}")))
        console.print(escape(assumptions(plan)), style="dim")
    short = [] if plan.fits else [explain(plan, changes)]
    short += [] if plan.disk.fits else [explain_disk(plan.disk, config)]
    if short:
        raise InputError("\n".join(short))


def run_export(run: Run, formats: tuple[str, ...] = ("diffusers",)) -> Path:
    """A run's checkpoint -> `run_dir/export`: weights in each of `formats`, and a model card."""
    with _logged(run.config, run.out):
        from pgdpo.training.export import export

        folder = export(run, formats)
        say(f"exported step {run.step} -> {folder}")
        return folder


def run_evaluate(*steps: Run) -> dict:
    """A run at one or more steps -> `results.json` and clips of each, and `report.html`, which is of the last.

    Returns the last one's results.
    """
    run = steps[-1]
    with _logged(run.config, run.out):
        from pgdpo.evaluation.evaluate import evaluate
        from pgdpo.evaluation.preview import write_preview
        from pgdpo.evaluation.report import write_report

        samples: dict = {}
        for each in steps:
            results = evaluate(each, samples=samples)
        write_preview(run.config, run.out, trained_on=run.state["identity"])
        report = write_report(run.folder, run.record, out=run.out)
        say(f"results -> {run.out / 'results.json'}")
        say(f"report  -> {report}")
        return results


def run_report(config: Config, *, step: int | None = None, out: Path | None = None) -> Path:
    """`report.html` in the run's folder or `out`: the prepared pairs, and what there is of the run, up to `step`."""
    folder, out = config.run_dir, out or config.run_dir
    checkpoint = None if step is None else at_step(folder, step)
    check_writable(out)
    with _logged(config, out):
        from pgdpo.evaluation.preview import write_preview
        from pgdpo.evaluation.report import write_report

        write_preview(config, out, trained_on=identity_of(folder, checkpoint))
        report = write_report(folder, read_record(folder, checkpoint) or config, out=out, step=step)
        say(f"report  -> {report}")
        return report


def run_quickstart(config: Config) -> None:
    """prepare, train, export, evaluate; ends with a table and the report's path. Finished steps are not repeated."""
    from pgdpo.evaluation.summary import summary_table

    started = time.perf_counter()
    say(f"  toy clips and manifests in {config.output_dir / 'toy'}", first="1/4 prepare", style="bold")
    run_prepare(config)
    say(f"    {config.objective['name']} in {config.run_dir}", first="2/4 train", style="bold")
    run_train(config, resume=True)
    say("   the adapter, for diffusers", first="3/4 export", style="bold")
    run_export(open_run(config))
    say(" reference against aligned, equal seeds", first="4/4 evaluate", style="bold")
    results = run_evaluate(open_run(config))
    console.print(summary_table(results))
    say(
        f"{time.perf_counter() - started:.0f} s in all. Open the report: {(config.run_dir / 'report.html').resolve()}"
    )


def _render_toy(config: Config) -> None:
    """The toy world's clips and manifests, where they are asked for."""
    toy = config.data.toy
    if "toy" not in (config.data.train, config.data.held_out):
        return
    with progress_bar("render toy clips", total=toy.train_pairs + toy.held_out_pairs) as bar:
        render_dataset(
            config.output_dir / "toy",
            train_pairs=toy.train_pairs,
            held_out_pairs=toy.held_out_pairs,
            seed=toy.seed,
            progress=lambda done, total: bar.advance(),
        )
        bar.finish()


def _logged(config: Config, out: Path | None = None):
    """What libraries say, in the run's folder; in `out` where that one cannot be written."""
    folder, key = config.run_dir, "output_dir"
    if out is not None and folder.exists() and not os.access(folder, os.W_OK):
        folder, key = out, "--out"
    check_writable(folder, key)
    return chatter_to(folder / "run.log")
