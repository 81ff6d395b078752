"""A list of objectives on one world at equal budget, over seeds: train, evaluate, compare.

A run that finished is not repeated and one that stopped goes on from its last checkpoint, so the same command
may be given again at any time.
"""

from __future__ import annotations

import gc
import json
import os
import time
from statistics import median

import yaml
from pydantic import ValidationError

from pgdpo.checkpoints.events import STANDING, read_events
from pgdpo.checkpoints.identity import rows_hash
from pgdpo.checkpoints.published import read_results
from pgdpo.checkpoints.record import dumped, identity_of, settled, with_new_names
from pgdpo.checkpoints.runs import open_run
from pgdpo.config import Config, StudyConfig
from pgdpo.data.preparing.run import prepare_splits
from pgdpo.evaluation.comparison import draw, study_table, summarise
from pgdpo.evaluation.errors import displacement_by_part
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.evaluation.run import evaluate_and_report
from pgdpo.files.atomic import atomic_path, write_json
from pgdpo.files.writable import log_in
from pgdpo.messages.console import console, say
from pgdpo.messages.errors import InputError
from pgdpo.messages.formats import duration
from pgdpo.objectives import build_objective
from pgdpo.training.metrics import read_metrics
from pgdpo.training.opening import open_pairs
from pgdpo.training.task.checks import check_data, frame_segments
from pgdpo.training.trainer import Trainer


def run_study(study: StudyConfig, runs: dict[str, list[Config]]) -> dict:
    """Every run, one after the other, in this process; `runs` is `load_study`'s. Writes study.json and study.png.

    Returns what study.json holds. A run whose numbers stop being finite is recorded as failed and the study goes on.
    Raises InputError, before the first run, for data that lacks what an objective needs and for folders that hold
    runs of other settings.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("`pgdpo study` trains its runs in one process: start it without a launcher")
    jobs = [(label, config) for label, configs in runs.items() for config in configs]
    for _, config in jobs:
        if config.expert == "both":
            raise InputError(
                "model.expert is `both`, and `pgdpo study` compares runs of one transformer: set it to high_noise or "
                "low_noise in the study's `base`, or among its `changes`"
            )
        _refuse_other_settings(config)
    with log_in(jobs[0][1].run_dir):
        prepare_splits(jobs[0][1])  # the same pairs for all
    for _, config in jobs:
        _refuse_other_data(config)
    _check_objectives([configs[0] for configs in runs.values()])
    rows, spent = [], []
    for number, (label, config) in enumerate(jobs, start=1):
        done = _is_finished(config)
        left = f", eta {duration(sum(spent) / len(spent) * (len(jobs) - number + 1))}" if spent else ""
        name = config.run_dir.name
        say(f" {name}{': is there already' if done else left}", first=f"{number}/{len(jobs)}", style="bold")
        started = time.perf_counter()
        failure = None if done else _run(config)
        if not done:
            spent.append(time.perf_counter() - started)
        rows.append(_row(label, config, failure))
    return _write(study, jobs[0][1], rows)


def _run(config: Config) -> str | None:
    """Train and evaluate. Returns why it failed, if it did."""
    try:
        with log_in(config.run_dir):
            Trainer(config).train(resume=True)
            evaluate_and_report(open_run(config))
    except InputError as error:  # settings and data were checked: the loss stopped being finite
        say(f" {config.run_dir.name}: {error}", first="failed")
        return str(error)
    finally:
        gc.collect()  # the engine's cycles hold the last run's model
    return None


def _row(label: str, config: Config, failure: str | None) -> dict:
    row = {
        "label": label,
        "objective": config.objective["name"],
        "options": {key: value for key, value in config.objective.items() if key != "name"},
        "seed": config.train.seed,
        "run": config.run_dir.name,
        "failed": failure,
    }
    if failure is not None:
        return row
    results = json.loads((config.run_dir / "results.json").read_text(encoding="utf-8"))
    held_out = results["displacement"]
    seconds = [metrics["seconds"] for metrics in read_metrics(config.run_dir)]
    return row | {
        "steps": results["steps"],
        "win_rate": results["win_rate"],
        "reward": results["reward"],
        "displacement": {name: held_out[name] for name in ("value", "low", "high", "pairs")},
        **displacement_by_part(results),
        "margin": held_out["margin"],
        "implicit_accuracy": held_out["implicit_accuracy"],
        "seconds_per_step": median(seconds[1:] or seconds),  # the first one warms up
    }


def _write(study: StudyConfig, config: Config, rows: list[dict]) -> dict:
    """study.json, study.png and the table."""
    train = config.train
    result = {
        "study": study.model_dump(mode="json"),
        "budget": {"steps": train.steps, "pairs_per_step": train.global_batch_groups},
        "machine": machine(),
        "versions": versions(),
        "objectives": summarise(rows),
        "runs": rows,
    }
    write_json(study.output_dir / "study.json", result)
    with atomic_path(study.output_dir / "study.png") as temporary:
        draw(result, temporary)
    console.print(study_table(result), soft_wrap=False)
    say(f"study   -> {study.output_dir / 'study.json'}, {study.output_dir / 'study.png'}")
    return result


def _check_objectives(configs: list[Config]) -> None:
    """Refuse an objective that the pairs can't feed before the hours spent on the others."""
    for config in configs:
        data = open_pairs(config, "train")
        objective = build_objective(config.objective["name"], **config.objective_options)
        check_data(objective, config, data)
        frame_segments(objective, config, data)


def _refuse_other_settings(config: Config) -> None:
    saved = config.run_dir / "config.yaml"
    if not saved.is_file():
        return
    try:
        raw = with_new_names(yaml.safe_load(saved.read_text(encoding="utf-8")))
        before = dumped(Config.of(raw).model_validate(raw))
        now = dumped(config)
        keys = before.keys() | now.keys()
        same = all(
            before.get(key) == now.get(key) or settled(key, before.get(key), now.get(key)) for key in keys
        )
    except (ValidationError, InputError, yaml.YAMLError):
        same = False
    if not same:
        raise InputError(
            f"{saved}: this run was made with other settings than the study has now: give the study another "
            "output_dir, or remove this folder"
        )


def _refuse_other_data(config: Config) -> None:
    identity = identity_of(config.run_dir)
    if identity is None:
        return
    data = open_pairs(config, "train", compare=False)
    found = {"data_hash": data.fingerprint, "rows_hash": rows_hash(data)}
    if any(identity.get(key, value) != value for key, value in found.items()):
        raise InputError(
            f"{config.run_dir}: this run was trained on other pairs than the study has now: give the study another "
            "output_dir, or remove this folder"
        )


def _is_finished(config: Config) -> bool:
    """Evaluated at its last step, or at the one that `train.steer.stop` ended it after."""
    results = read_results(config.run_dir / "results.json")
    standing = next((row for row in reversed(read_events(config.run_dir)) if row["event"] in STANDING), None)
    ended = standing["step"] if standing is not None and standing["event"] == "finished" else None
    return results is not None and results["steps"] in (config.train.steps, ended)
