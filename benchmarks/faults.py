"""Every fault at its full count: `python -m benchmarks.faults [-k EXPRESSION]` -> results/faults.json.

Runs `tests/faults` with its slow tests and writes down, for each fault, how often it was tried, survived, and the
seconds that took; and what hashing and publishing cost a save of 1 GB (`--cost`: that alone). With `-k`, as pytest
takes it, the faults that were not run keep their figures.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from pgdpo.evaluation.evaluate import machine, versions

from .report import RESULTS

FILE = RESULTS / "faults.json"
ROUNDS = 5


def run_tests(expression: str) -> dict[str, dict]:
    """Fault -> its figures, from what `tally` wrote in all tests that pytest's `-k` expression selects."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "faults.jsonl"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/faults",
            "-m",
            "slow or not slow",
            "-k",
            expression,
        ]
        environment = {**os.environ, "FAULTS_JSONL": str(log)}
        root = Path(__file__).parent.parent
        done = subprocess.run([*command, "--timeout=7200"], cwd=root, env=environment)
        rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    found: dict[str, dict] = {}
    for row in rows:
        total = found.setdefault(
            str(row.pop("fault")), {"tried": 0, "survived": 0, "seconds": 0.0, "tests": []}
        )
        for key in ("tried", "survived", "seconds"):
            total[key] = round(total[key] + row[key], 1)
        total["tests"].append(row)
    if done.returncode:
        print(f"pytest ended with {done.returncode}: see above", file=sys.stderr)
    return found


def saving_cost(gigabytes: float = 1.0) -> dict:
    """Seconds of writing and flushing as many bytes of safetensors, alone and with hashes, manifest and rename.

    The least of some rounds each, in turn: what else the machine does only adds to them.
    """
    from pgdpo.training import engine, published
    from pgdpo.training.shards import ShardWriter

    engine.start_distributed()
    count = 32
    tensors = {f"block.{n}.weight": torch.randn(int(gigabytes * 1e9 / 4 / count)) for n in range(count)}
    times: dict[str, list[float]] = {"plain": [], "whole": [], "publish": [], "hash_alone": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for number in range(ROUNDS):
            began = time.perf_counter()
            plain = Path(folder) / "plain.safetensors"
            save_file(tensors, plain)
            with plain.open("rb") as file:
                os.fsync(file.fileno())
            times["plain"].append(time.perf_counter() - began)
            began = time.perf_counter()
            temporary = published.temporary_folder(Path(folder), number)
            writer = ShardWriter(temporary, "weights")
            for name, tensor in tensors.items():
                writer.add(name, tensor)
            files = writer.close()
            written = time.perf_counter()
            path = published.publish(temporary, files)
            times["whole"].append(time.perf_counter() - began)
            times["publish"].append(time.perf_counter() - written)
            began = time.perf_counter()
            for name in files:
                hashlib.sha256((path / name).read_bytes())
            times["hash_alone"].append(time.perf_counter() - began)
            plain.unlink()
            published.prune(Path(folder), 1, known_valid=[path])
    least = {name: min(values) for name, values in times.items()}
    return {
        "gigabytes": gigabytes,
        "seconds": {name: round(value, 3) for name, value in least.items()},
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in times.items()},
        "added_share": round(least["whole"] / least["plain"] - 1, 3),
        "note": "plain: safetensors' save_file and fsync; whole: our shards with SHA-256 beside the writing, manifest, "
        "fsync, rename; hash_alone: what hashing one after the other would add",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", default="", help="which tests, as pytest takes it; all by default")
    parser.add_argument("--cost", action="store_true", help="measure the cost of a save only")
    options = parser.parse_args()
    results = json.loads(FILE.read_text()) if FILE.is_file() else {"faults": {}}
    load = os.getloadavg()[0]
    about = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": versions()}
    if options.cost or not options.k:
        results["saving_cost"] = {**saving_cost(), "load_average": round(load, 1), **about}
    if not options.cost:
        found = run_tests(options.k)
        results["faults"] |= {
            key: {**value, "load_average": round(load, 1), **about} for key, value in found.items()
        }
    results["faults"] = dict(sorted(results["faults"].items(), key=lambda item: int(item[0])))
    FILE.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for key, value in results["faults"].items():
        print(f"fault {key:>2}: {value['survived']} of {value['tried']} survived, {value['seconds']} s")


if __name__ == "__main__":
    main()
