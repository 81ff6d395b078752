"""What the sound's part of the loss does on the sounding toy world: `python -m benchmarks.studies.sound`, after `pgdpo
study benchmarks/studies/sound.yaml` in the same folder.

Writes toy_sound.json: of each run, and in the mean over seeds, the reward by dimension before and after, the win rate,
and displacement and implicit accuracy of each part and of both together.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from pgdpo.checkpoints.published import read_results
from pgdpo.checkpoints.runs import evaluation_of
from pgdpo.files.atomic import write_json
from pgdpo.training.panels import PARTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/sound"), help="of the study's runs"
    )
    parser.add_argument("--out", type=Path, default=Path("toy_sound.json"))
    run(**vars(parser.parse_args()))
    return 0


def run(folder: Path, out: Path) -> None:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    rows = [_row(folder / found["run"], found) for found in study["runs"]]
    labels = dict.fromkeys(row["label"] for row in rows)
    write_json(
        out,
        {
            "what": "PG-DPO with the sound's part of the loss (both) and without it (picture), sounding toy world; "
            "benchmarks/studies/sound.yaml",
            "machine": study["machine"],
            "versions": study["versions"],
            "budget": study["budget"],
            "means": {label: _means([row for row in rows if row["label"] == label]) for label in labels},
            "runs": rows,
        },
    )


def _row(run: Path, found: dict) -> dict:
    results = read_results(evaluation_of(run, found["steps"]) / "results.json")
    wins, samples = results["win_rate"], results["samples"]
    return {
        "label": found["label"],
        "seed": found["seed"],
        "steps": results["steps"],
        "win_rate": wins["value"],
        "samples": len(samples),
        "win rate in harmony": mean(
            (a > r) + (a == r) / 2
            for a, r in (
                [each[which]["reward"]["harmony"] for which in ("aligned", "reference")] for each in samples
            )
        ),
        "reward": results["reward"]["aligned"],
        "reference's reward": results["reward"]["reference"],
        "held-out pairs": _moved(results, "pairs"),
        "displacement": _moved(results),
        "implicit accuracy": _moved(results, "implicit_accuracy"),
    }


def _moved(results: dict, key: str = "value") -> dict:
    parts = {"together": results, **results[PARTS]}
    return {name: part["displacement"][key] for name, part in parts.items()}


def _means(rows: list[dict]) -> dict:
    """Of numbers, and of those in mappings by name."""
    found = {}
    for key, value in rows[0].items():
        if isinstance(value, dict):
            found[key] = {name: round(mean(row[key][name] for row in rows), 4) for name in value}
        elif key not in ("label", "seed", "steps", "samples"):
            found[key] = round(mean(row[key] for row in rows), 4)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
