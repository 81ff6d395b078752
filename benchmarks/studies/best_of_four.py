"""Objectives on whole lists beside DPO: `python -m benchmarks.studies.best_of_four`, after `pgdpo study
benchmarks/studies/best_of_four.yaml` in the same folder. Writes best_of_four.json: each run's win rate, reward and
held-out figures, and their means over the seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from pgdpo.files.atomic import write_json

FIGURES = ("win_rate", "reward", "displacement", "implicit_accuracy", "margin")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/best_of_four"), help="of the study's runs"
    )
    parser.add_argument("--out", type=Path, default=Path("best_of_four.json"))
    run(**vars(parser.parse_args()))
    return 0


def run(folder: Path, out: Path) -> None:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    rows = [_row(folder / found["run"], found) for found in study["runs"]]
    labels = dict.fromkeys(row["label"] for row in rows)
    write_json(
        out,
        {
            "what": "lists of 4 of the toy world, 16 clips a step: objectives on whole lists, and DPO on the best "
            "against the worst of twice as many lists; benchmarks/studies/best_of_four.yaml",
            "machine": study["machine"],
            "versions": study["versions"],
            "steps": study["budget"]["steps"],
            "means": {label: _means([row for row in rows if row["label"] == label]) for label in labels},
            "runs": rows,
        },
    )


def _row(run: Path, found: dict) -> dict:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    held_out, reward = results["displacement"], results["reward"]
    return {
        "label": found["label"],
        "options": found["options"],
        "seed": found["seed"],
        "win_rate": results["win_rate"]["value"],
        "reward": reward["aligned"]["total"],
        "reference's reward": reward["reference"]["total"],
        "displacement": held_out["value"],
        "implicit_accuracy": held_out["implicit_accuracy"],
        "margin": held_out["margin"],
    }


def _means(rows: list[dict]) -> dict:
    return {name: round(mean(row[name] for row in rows), 5) for name in FIGURES}


if __name__ == "__main__":
    raise SystemExit(main())
