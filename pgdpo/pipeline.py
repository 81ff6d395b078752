"""What each command does, from a checked configuration to files on disk."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import yaml

from pgdpo import models
from pgdpo.config import Config
from pgdpo.console import chatter_to, console, is_main_rank, progress_bar, say
from pgdpo.data.files import atomic_path
from pgdpo.data.toy import render_dataset


def run_prepare(config: Config) -> None:
    """Clips and prompts of both splits -> `output_dir/prepared/<split>`."""
    from pgdpo.data.prepare import prepare
    from pgdpo.training.policy import prepared_folder

    with _logged(config):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        encoders = models.family(config.model.family).load_encoders(
            config.model.path, config.model.encoders, device
        )
        for split, manifest in _manifests(config).items():
            folder = prepared_folder(config, split)
            index = prepare(manifest, folder, config.data, encoders)
            size = sum(entry["bytes"] for entry in [index["text"], *index["shards"]])
            say(f"prepared {len(index['pairs'])} pairs of {manifest} -> {folder} ({size / 1e6:.1f} MB)")


def run_train(config: Config, *, resume: bool = False, restart: bool = False) -> None:
    """Prepared pairs -> checkpoints, metrics."""
    with _logged(config):
        from pgdpo.training.loop import Trainer

        trainer = Trainer(config)
        if is_main_rank():
            _write_resolved(config)
        last = trainer.train(resume=resume, restart=restart)
        say(f"trained -> {last}; metrics: {config.run_dir / 'metrics.jsonl'}")


def run_export(config: Config) -> Path:
    """Newest checkpoint -> `run_dir/export`, under diffusers' names."""
    with _logged(config):
        from pgdpo.training.export import export

        folder = export(config)
        say(f"exported -> {folder}")
        return folder


def run_evaluate(config: Config) -> dict:
    """Newest checkpoint -> `results.json`, clips and `report.html` in the run's folder."""
    with _logged(config):
        from pgdpo.evaluation.evaluate import evaluate
        from pgdpo.evaluation.report import write_report

        results = evaluate(config)
        report = write_report(config.run_dir)
        say(f"results -> {config.run_dir / 'results.json'}")
        say(f"report  -> {report}")
        return results


def run_quickstart(config: Config) -> None:
    """prepare, train, export, evaluate; ends with a table and the report's path. Finished steps are not repeated."""
    from pgdpo.evaluation.summary import summary_table

    started = time.perf_counter()
    say(f"[bold]1/4 prepare[/]  toy clips and manifests in {config.output_dir / 'toy'}")
    run_prepare(config)
    say(f"[bold]2/4 train[/]    {config.objective['name']} in {config.run_dir}")
    run_train(config, resume=True)
    say("[bold]3/4 export[/]   the adapter, for diffusers")
    run_export(config)
    say("[bold]4/4 evaluate[/] reference against aligned, equal seeds")
    results = run_evaluate(config)
    console.print(summary_table(results))
    say(
        f"{time.perf_counter() - started:.0f} s in all. Open the report: {(config.run_dir / 'report.html').resolve()}"
    )


def _manifests(config: Config) -> dict[str, Path]:
    """Manifest of each split; the toy world's are rendered when they are asked for."""
    sources = {"train": config.data.train, "held_out": config.data.held_out}
    if "toy" in sources.values():
        toy = config.data.toy
        total = toy.train_pairs + toy.held_out_pairs
        with progress_bar("render toy clips", total=total) as bar:
            rendered = render_dataset(
                config.output_dir / "toy",
                train_pairs=toy.train_pairs,
                held_out_pairs=toy.held_out_pairs,
                seed=toy.seed,
                progress=lambda done, total: bar.advance(),
            )
            bar.finish()
        paths = dict(zip(("train", "held_out"), rendered, strict=True))
        return {
            split: paths[split] if source == "toy" else Path(source)
            for split, source in sources.items()
            if source
        }
    return {split: Path(source) for split, source in sources.items() if source}


def _logged(config: Config):
    return chatter_to(config.run_dir / "run.log")


def _write_resolved(config: Config) -> None:
    with atomic_path(config.run_dir / "config.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
        )
