"""`objective.beta: auto` beside a sweep on the toy world: `python -m benchmarks.studies.beta_sweep`, after `pgdpo study
benchmarks/studies/beta_sweep.yaml` in the same folder.

Writes beta_sweep.json: what each beta came to, and what `auto` takes for the same configuration, three seeds.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

from pgdpo.config.read import load_config, load_study
from pgdpo.files.atomic import write_json
from pgdpo.training.steering.fitting_beta import TARGET, fitting_beta
from pgdpo.training.trainer import Trainer

STUDY = Path(__file__).with_name("beta_sweep.yaml")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs/beta_sweep"), help="of the study's runs"
    )
    parser.add_argument("--out", type=Path, default=Path("beta_sweep.json"))
    run(**vars(parser.parse_args()))
    return 0


def run(folder: Path, out: Path) -> None:
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    changes = [*study["study"]["changes"], f"output_dir={folder}", "objective={name: dpo, beta: auto}"]
    base = load_study(STUDY)[0].base
    found = {seed: _fit([*changes, f"train.seed={seed}", "evaluate.every=null"], base) for seed in (0, 1, 2)}
    rows = [_row(each) for each in study["runs"]]
    best = max(rows, key=lambda row: row["win_rate"])
    write_json(
        out,
        {
            "what": "dpo on the toy world at one seed and several betas; what `auto` takes there",
            "machine": study["machine"],
            "versions": study["versions"],
            "budget": study["budget"],
            "target |logit|": TARGET,
            "auto": found,
            "best beta by win rate": best["beta"],
            "auto over it": {seed: round(beta / best["beta"], 2) for seed, beta in found.items()},
            "sweep": rows,
        },
    )


def _fit(changes: list[str], base: str) -> float:
    trainer = Trainer(load_config(base, changes))
    with trainer.watch:
        beta = fitting_beta(trainer.step, trainer.task).beta
    del trainer
    gc.collect()
    return beta


def _row(found: dict) -> dict:
    names = ("steps", "margin", "implicit_accuracy")
    return {
        "beta": found["options"]["beta"],
        **{name: found[name] for name in names},
        "win_rate": found["win_rate"]["value"],
        "win_rate, 95%": [found["win_rate"]["low"], found["win_rate"]["high"]],
        "reward": found["reward"]["aligned"]["total"],
        "displacement": found["displacement"]["value"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
