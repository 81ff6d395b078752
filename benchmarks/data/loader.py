"""Milliseconds that loading a prepared pair takes, beside the planned seconds of a step on it, for shipped models:

    python -m benchmarks.data.loader [--before CHECKOUT] [--rounds 5]

-> results/loader.json. Latents of random numbers in the shape and dtype of each configuration, and embedded prompts of
full length (the longest that there are), stand in prepared folders; the pages are in the host's cache. `read` is all
that one pair costs one thread, in CPU time, which other work on the machine does not lengthen much: its bytes are read,
hashed and held against the index, and laid out as a batch. `waits` is what a loop waits for a batch of one pair, in
wall-clock time, that computes `BUSY` seconds in between (it sleeps), for so many workers.

The seconds of a step are **predicted** (`pgdpo plan`, one H100 at 35% of its peak), and are one pair's: no GPU was
used. `--before`: a checkout of an earlier commit, whose reading is timed in turn with this one's, each in a process of
its own. HF_HUB_OFFLINE=1 spares the question for the models' configurations where the hub can't be reached.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from pgdpo.config.read import load_config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.shards import INDEX, prompt_key, tensors_sha256, write
from pgdpo.data.visits.loading import load_batches
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.files.atomic import sha256_of, write_json
from pgdpo.planning import hardware
from pgdpo.planning.plan import Planner

from ..report import RESULTS

FILE = RESULTS / "loader.json"
CONFIGS = ("ltx_video", "wan21_1.3b", "wan21_14b", "hunyuan_video", "cogvideox_2b", "cogvideox_5b")
PAIRS = 8
BUSY = 0.1
WORKERS = (0, 1, 2)
# Reads and lays out every pair once when it is told to, and says how many seconds of the CPU that took.
READER = """
import sys, time
from pathlib import Path
import torch
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import collate
torch.set_num_threads(1)
data = PreparedPairs(Path(sys.argv[1]))
for _ in sys.stdin:
    started = time.process_time()
    for index in range(len(data)):
        collate([data[index, 0]])
    print(time.process_time() - started, flush=True)
"""


def make(folder: Path, planner: Planner, text_dtype: torch.dtype) -> int:
    """A prepared folder of random numbers. Returns a pair's bytes, its prompt's among them."""
    shape, text = planner.latent_shape, planner.family.text_length
    with torch.device("meta"):
        told = planner.family.example_conditioning(1, shape)
    width = {name: tensor.shape[1:] for name, tensor in told.items() if tensor.is_floating_point()}
    tensors, pairs, prompts, embedded = {}, [], {}, {}
    for number in range(PAIRS):
        pair = {side: torch.randn(shape).bfloat16() for side in ("chosen", "rejected")}
        tensors |= {f"{number}.{name}": tensor for name, tensor in pair.items()}
        found = {name: torch.randn(tuple(each)).to(text_dtype) for name, each in width.items()}
        key = prompt_key(str(number))
        prompts[key] = [0, tensors_sha256(found)]
        embedded |= {f"{key}.{name}": tensor for name, tensor in found.items()}
        row = {"id": str(number), "prompt": str(number), "shard": 0, "key": str(number)}
        pairs.append({**row, "sha256": tensors_sha256(pair)})
    about = {"size": [1, 1, 1], "latent_shape": list(shape)}
    shard = write(folder / "shard-0.safetensors", "0", tensors, about)
    file = write(folder / "text-0.safetensors", "0", embedded, {})
    part = {"names": sorted(width), "bytes": file["bytes"], "files": [file], "prompts": prompts}
    index = {"format": INDEX, "sizes": [[1, 1, 1]], "text_length": text, "text": part, "image": []}
    write_json(folder / "index.json", {**index, "shards": [shard], "pairs": pairs, "bad": []})
    assert sha256_of(folder / shard["file"]) == shard["sha256"]
    return (shard["bytes"] + file["bytes"]) // PAIRS


class Reader:
    """A process that reads a folder with the code of a checkout."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        path = os.pathsep.join([str(checkout), str(checkout / "kernels")])
        command = [sys.executable, "-c", READER, str(folder)]
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
        )

    def milliseconds(self) -> float:
        """Of a pair."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return 1e3 * float(self.process.stdout.readline()) / PAIRS

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def waits(folder: Path, workers: int) -> float:
    """Milliseconds, the median of twice all pairs but the first few."""
    data, waited = PreparedPairs(folder), []
    loaded = load_batches(data, [[(index % PAIRS, 0)] for index in range(2 * PAIRS)], workers=workers)
    for _ in range(2 * PAIRS):
        started = time.perf_counter()
        next(loaded)
        waited.append(1e3 * (time.perf_counter() - started))
        time.sleep(BUSY)
    return round(median(waited[2:]), 2)


def measured(name: str, before: Path | None, rounds: int, folder: Path) -> dict:
    config = load_config(f"configs/{name}.yaml", [])
    planner = Planner(config)
    gpu = {"name": "H100", "gpus": 1, "nodes": 1, "memory_gb": None, "mfu": 0.35, "disk_gb_per_s": 1.0}
    step = planner.plan(config, hardware.machine(**gpu)).step.seconds / config.train.global_batch_groups
    checkouts = {"read": Path.cwd(), **({"read_before": before} if before else {})}
    size, readers = {}, {}
    for which, dtype in (("read", torch.bfloat16), ("read_before", torch.float32)):
        if which in checkouts:  # earlier versions stored prompts in fp32
            size[which] = make(folder / which, planner, dtype)
            readers[which] = Reader(checkouts[which], folder / which)
    times: dict[str, list[float]] = {which: [] for which in readers}
    for number in range(rounds + 1):
        for which, reader in readers.items():
            found = reader.milliseconds()
            if number:  # the first one fills the cache
                times[which].append(round(found, 2))
    for reader in readers.values():
        reader.close()
    waiting = {str(workers): waits(folder / "read", workers) for workers in WORKERS}
    share = {workers: round(found / (1e3 * step), 5) for workers, found in waiting.items()}
    return {
        "latents": list(planner.latent_shape),
        "pair_bytes": size,
        "cpu_milliseconds_a_pair": {
            which: {"median": median(each), "rounds": each} for which, each in times.items()
        },
        "predicted_step_seconds_a_pair": round(step, 3),
        "share_of_the_step": {which: round(median(each) / (1e3 * step), 5) for which, each in times.items()},
        "waits_milliseconds_by_workers": waiting,
        "waits_share_by_workers": share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "models": {},
        "busy_seconds": BUSY,
        "step_seconds": "predicted by pgdpo plan for one H100; loading was timed on this machine's CPU",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "machine": machine(),
        "versions": versions(),
    }
    for name in CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            result["models"][name] = measured(name, asked.before, asked.rounds, Path(folder))
        print(name, json.dumps(result["models"][name], indent=2), flush=True)
        write_json(FILE, result)


if __name__ == "__main__":
    main()
