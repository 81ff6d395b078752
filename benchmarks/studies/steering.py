"""What steering does on the toy world: `python -m benchmarks.studies.steering`, after `pgdpo study
benchmarks/studies/steering.yaml` in the same folder.

Evaluates each run's best checkpoint by displacement beside its last one, and writes steering.json: win rate, reward and
displacement of both, steps, decisions, and the share of the training that held-out figures took.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from pgdpo.checkpoints.best import best_step, read_held_out
from pgdpo.checkpoints.events import read_events
from pgdpo.checkpoints.published import read_results
from pgdpo.checkpoints.runs import evaluation_of, open_run
from pgdpo.evaluation.run import evaluate_and_report
from pgdpo.files.atomic import write_json
from pgdpo.files.writable import log_in
from pgdpo.training.metrics import read_metrics


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/steering"), help="of the study's runs"
    )
    parser.add_argument("--out", type=Path, default=Path("steering.json"))
    best = ["dpo", "dpo-sft_weight", "pg_dpo"]
    parser.add_argument("--best", nargs="*", default=best, help="labels whose best step is judged, too")
    run(**vars(parser.parse_args()))
    return 0


def run(folder: Path, out: Path, best: list[str]) -> None:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    rows = [_row(folder / found["run"], found, best) for found in study["runs"]]
    labels = dict.fromkeys(row["label"] for row in rows)
    write_json(
        out,
        {
            "what": "DPO with rules of train.steer beside DPO and PG-DPO, toy world; benchmarks/studies/steering.yaml",
            "machine": study["machine"],
            "versions": study["versions"],
            "budget": study["budget"],
            "means": {label: _means([row for row in rows if row["label"] == label]) for label in labels},
            "runs": rows,
        },
    )


def _row(run: Path, found: dict, best: list[str]) -> dict:
    events = read_events(run)
    last = read_results(evaluation_of(run, found["steps"]) / "results.json")
    seconds = sum(each["seconds"] for each in read_metrics(run))
    row = {
        "label": found["label"],
        "seed": found["seed"],
        "last": _figures(last),
        "decisions": sum(event["event"] == "steer" for event in events),
        "said to fail in silence": any(event["event"] == "common rise" for event in events),
        "seconds of steps": round(seconds, 1),
        "share of held-out figures": _share(run, seconds),
    }
    return row | ({"best by displacement": _of_best(run, last)} if found["label"] in best else {})


def _of_best(run: Path, last: dict) -> dict:
    step = best_step(run, "displacement")
    results = last if step == last["steps"] else read_results(evaluation_of(run, step) / "results.json")
    if results is None:
        with log_in(run):
            evaluate_and_report(open_run(run, step=step))
        results = read_results(evaluation_of(run, step) / "results.json")
    return _figures(results)


def _figures(results: dict) -> dict:
    held_out = results["displacement"]
    return {
        "steps": results["steps"],
        "win_rate": results["win_rate"]["value"],
        "reward": results["reward"]["aligned"]["total"],
        "reference's reward": results["reward"]["reference"]["total"],
        "displacement": held_out["value"],
        "implicit_accuracy": held_out["implicit_accuracy"],
        "margin": held_out["margin"],
    }


def _share(run: Path, seconds: float) -> float:
    """Of the training that held-out figures took; that of the model that the run began with counts as one more look."""
    looks = [row["seconds"] for row in read_held_out(run)]
    took = sum(looks) + looks[0]
    return round(took / (seconds + took), 4)


def _means(rows: list[dict]) -> dict:
    names = ("steps", "win_rate", "reward", "displacement", "margin")
    kinds = [kind for kind in ("last", "best by displacement") if kind in rows[0]]
    return {kind: {name: round(mean(row[kind][name] for row in rows), 4) for name in names} for kind in kinds}


if __name__ == "__main__":
    raise SystemExit(main())
