"""Figures of the main job on two CPU cores: `python -m benchmarks.runs.main_job [PART ...]`.

`quickstart`: seconds and peak memory of `pgdpo quickstart` in an empty folder. `equal`: how far losses differ between
two equal runs, one and two processes, a straight and a resumed run. `seeds`: PG-DPO against plain DPO over five seeds
at equal beta, learning rate and steps. Each part is written to results/main_job.json as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgdpo.evaluation.comparison import share_over_seeds
from pgdpo.evaluation.evaluate import machine, versions

from ..report import RESULTS

SEEDS = range(5)
OBJECTIVES = ("dpo", "pg_dpo")


def pgdpo(folder: Path, *arguments: str, ranks: int = 0, threads: int | None = None) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    subprocess.run(
        [sys.executable, *launcher, "-m", "pgdpo", *arguments], cwd=folder, check=True, env=environment
    )


def rows(folder: Path, run: str) -> list[dict]:
    path = folder / "runs" / "quickstart" / run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(folder: Path, run: str) -> dict:
    return json.loads((folder / "runs" / "quickstart" / run / "results.json").read_text(encoding="utf-8"))


def quickstart(folder: Path) -> dict:
    started = time.perf_counter()
    pgdpo(folder, "quickstart")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": peak,
        "limits": [300, 4 * 2**30],
    }


def equal(folder: Path) -> dict:
    """Largest relative difference of the loss column over 12 steps."""
    pgdpo(folder, "prepare", "quickstart.yaml")
    short = ("train.steps=12", "train.checkpoint_every=5")
    train = lambda name, *more, **ranks: pgdpo(  # noqa: E731
        folder, "train", "quickstart.yaml", f"name={name}", *short, *more, **ranks
    )
    train("straight")
    train("again")
    train("two", "train.micro_batch_groups=8", ranks=2, threads=1)
    train("resumed", "train.steps=5")
    train("resumed", "--resume")

    def difference(name: str) -> float:
        pairs = zip(rows(folder, "straight"), rows(folder, name), strict=True)
        return max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs)

    return {
        "same_seed_twice": difference("again"),
        "one_process_and_two": difference("two"),
        "straight_and_resumed": difference("resumed"),
        "limits": [0.0, 1e-5, 1e-6],
    }


def seeds(folder: Path) -> dict:
    pgdpo(folder, "prepare", "quickstart.yaml")

    def run(job: tuple[str, int]) -> dict:
        objective, seed = job
        name = f"{objective}-{seed}"
        settings = ("quickstart.yaml", f"name={name}", f"objective.name={objective}", f"train.seed={seed}")
        pgdpo(folder, "train", *settings, threads=1)
        pgdpo(folder, "evaluate", *settings, f"evaluate.seed={seed}", threads=1)
        return results(folder, name)

    jobs = [(objective, seed) for seed in SEEDS for objective in OBJECTIVES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(zip(jobs, pool.map(run, jobs), strict=True))
    return {name: _over_seeds([result for job, result in found if job[0] == name]) for name in OBJECTIVES}


def _over_seeds(runs: list[dict]) -> dict:
    return {
        # The seeds share prompts and pairs: their samples are not pooled as if they were independent.
        "win_rate": share_over_seeds([r["win_rate"] for r in runs], "samples"),
        "displacement": share_over_seeds([r["displacement"] for r in runs], "pairs"),
        "per_seed": [
            {
                "win_rate": r["win_rate"]["value"],
                "displacement": r["displacement"]["value"],
                "excess/chosen": r["displacement"]["excess/chosen"],
                "excess/rejected": r["displacement"]["excess/rejected"],
                "implicit_accuracy": r["displacement"]["implicit_accuracy"],
                "reward": {which: means["total"] for which, means in r["reward"].items()},
            }
            for r in runs
        ],
    }


PARTS = {"quickstart": quickstart, "equal": equal, "seeds": seeds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    for name in parser.parse_args().parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            measured = PARTS[name](Path(folder))
        path = RESULTS / "main_job.json"
        merged = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        merged[name] = {"machine": machine(), "versions": versions(), **measured}
        path.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({name: measured}, indent=1))


if __name__ == "__main__":
    main()
