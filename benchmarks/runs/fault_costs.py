"""What surviving costs an undisturbed run: a save, and the guards of a step; `benchmarks.runs.faults --cost`."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

ROUNDS = 12
STEPS = 40


def saving(gigabytes: float = 1.0) -> dict:
    """Seconds for which training is held by a plain save of CPU tensors, by one of private copies, as ours makes them
    (and any save from a GPU), and by ours; and until ours is published.

    The least of some rounds each, in turn: what else the machine does only adds to them.
    """
    from pgdpo.checkpoints.checkpoint import Checkpoints
    from pgdpo.engine import engine

    engine.start_distributed()
    count = 32
    tensors = {f"block.{n}.weight": torch.randn(int(gigabytes * 1e9 / 4 / count)) for n in range(count)}
    nothing_else = SimpleNamespace(module=torch.nn.Module(), zero_optimization_stage=lambda: 0)
    times: dict[str, list[float]] = {"plain": [], "copied": [], "held": [], "published": []}
    runs = Path("runs")  # on this disk, where /tmp may be memory; git ignores what a kill leaves there
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs) as folder:
        (Path(folder) / "checkpoints").mkdir()
        checkpoints = Checkpoints(Path(folder), keep=1)
        checkpoints._prune = lambda: None  # reads back: beside the training, and before this mechanism too
        for step in range(1, ROUNDS + 1):
            for name in ("plain", "copied"):
                began = time.perf_counter()
                copied = (
                    {key: tensor.clone() for key, tensor in tensors.items()} if name == "copied" else tensors
                )
                file = Path(folder) / "plain.safetensors"
                save_file(copied, file)
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
                times[name].append(time.perf_counter() - began)
                file.unlink()
            began = time.perf_counter()
            checkpoints.save(nothing_else, step, {}, extra=tensors.items)
            times["held"].append(time.perf_counter() - began)
            path = checkpoints.finish()
            times["published"].append(time.perf_counter() - began)
            shutil.rmtree(path)
    least = {name: min(values) for name, values in times.items()}
    return {
        "gigabytes": gigabytes,
        "rounds": ROUNDS,
        "seconds": {name: round(value, 3) for name, value in least.items()},
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "added_share": {name: round(least["held"] / least[name] - 1, 3) for name in ("plain", "copied")},
        "note": "plain: safetensors' save_file and fsync; copied: the same of private copies; held: until "
        "Checkpoints.save returns, which makes such copies; published: with SHA-256, manifest and rename, beside the "
        "training; seconds: the least; added_share: of held over plain and over copied",
    }


def guarding() -> dict:
    """Seconds a step of the guards and of the whole, of the quickstart's model on two CPU ranks: medians and least."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(
            [sys.executable, "-m", "pgdpo", "prepare", "quickstart.yaml"],
            cwd=folder,
            env=environment,
            check=True,
        )
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run(
            [sys.executable, *launcher, "-m", __name__, str(out)], cwd=folder, env=environment, check=True
        )
        seconds = json.loads(out.read_text())
    seconds = {name: values[2:] for name, values in seconds.items()}  # the first steps warm up
    median = {name: statistics.median(values) for name, values in seconds.items()}
    least = {name: min(values) for name, values in seconds.items()}
    return {
        "steps": len(seconds["step"]),
        "median_seconds": {name: round(value, 6) for name, value in median.items()},
        "seconds": {name: round(value, 6) for name, value in least.items()},
        "share": round(median["guards"] / median["step"], 5),
        "note": "guards: Guard.see, its question inside the optimizer with the all-reduce, and settle; signals: the "
        "all-reduce before each micro-batch that lets all ranks stop together; blocks: the same between the blocks of "
        "the transformer, every two seconds, and the watchdog's count of them; share: guards by step, of the medians; "
        "seconds: the least",
    }


def _measure(out: Path) -> None:
    """One of the two ranks: train, and write down each step's seconds."""
    from pgdpo.config.read import load_config
    from pgdpo.engine import blocks
    from pgdpo.guards.bad_steps import Guard
    from pgdpo.guards.signals import StopSignals
    from pgdpo.training.step import Step
    from pgdpo.training.trainer import Trainer

    seconds: dict[str, list[float]] = {"step": [], "guards": [], "signals": [], "blocks": []}

    def timed(owner: object, method: str, name: str) -> None:
        whole = getattr(owner, method)

        def timing(*arguments, **options):
            began = time.perf_counter()
            try:
                return whole(*arguments, **options)
            finally:
                seconds[name][-1] += time.perf_counter() - began

        setattr(owner, method, timing)

    for method in ("see", "_may_step", "settle"):
        timed(Guard, method, "guards")
    timed(StopSignals, "check", "signals")
    timed(blocks, "_tell", "blocks")
    timed(Step, "take", "step")
    take = Step.take

    def stepping(*arguments):
        for values in seconds.values():
            values.append(0.0)
        return take(*arguments)

    Step.take = stepping
    overrides = [f"train.steps={STEPS}", "train.micro_batch_groups=8", "name=guards", "evaluate.every=null"]
    Trainer(load_config("quickstart.yaml", overrides)).train(restart=True)
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(seconds))


if __name__ == "__main__":
    _measure(Path(sys.argv[1]))
