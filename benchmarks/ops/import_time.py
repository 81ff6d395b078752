"""Seconds that `import pgdpo_kernels` takes beyond torch and triton, and what its installation takes:

    PYTHONPATH=.:kernels python -m benchmarks.ops.import_time [--rounds 15]

-> results/kernels_import.json. Every import is one of a fresh process, with its bytecode there, as pip leaves it;
processes without and with the kernels take turns. `on_top` is timed within a process, after torch and triton; the
processes' own difference is there beside it, and has the noise of torch's seconds. On a machine that others use too,
CPU seconds and the least of the wall seconds say more than the median.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from ..report import RESULTS, machine, write

KERNELS = RESULTS.parent.parent / "kernels"
TIMED = """
from time import perf_counter as now, process_time as cpu
start = now(), cpu()
import torch, triton
between = now(), cpu()
{more}
end = now(), cpu()
print([end[0] - start[0], end[1] - start[1], end[0] - between[0], end[1] - between[1]])
"""
FIELDS = ("all_s", "all_cpu_s", "on_top_s", "on_top_cpu_s")


def seconds(more: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(more=more)], capture_output=True, text=True, check=True
    )
    return dict(zip(FIELDS, json.loads(done.stdout), strict=True))


def imports(rounds: int) -> dict:
    """Medians, and the least of what comes on top: other processes on the machine can only add to it."""
    ways = {"torch and triton": "pass", "and pgdpo_kernels": "import pgdpo_kernels"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first warms up
        for name in sorted(ways, reverse=bool(turn % 2)):
            found[name].append(seconds(ways[name]))
    kept = {name: rows[1:] for name, rows in found.items()}
    out = {
        name: {field: round(median(row[field] for row in rows), 4) for field in FIELDS}
        for name, rows in kept.items()
    }
    for field in FIELDS[2:]:
        del out["torch and triton"][field]  # of nothing
    out["and pgdpo_kernels"]["on_top_s_least"] = round(
        min(row["on_top_s"] for row in kept["and pgdpo_kernels"]), 4
    )
    return out


def installation(rounds: int) -> dict:
    """`pip install ./kernels` from a copy, built without isolation, so that no network is timed."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline, taken = ["--no-deps", "--no-build-isolation"], []
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernels", Path(folder) / "site"
        litter = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        shutil.copytree(KERNELS, source, ignore=litter)
        for _ in range(rounds):
            shutil.rmtree(target, ignore_errors=True)
            started = time.perf_counter()
            subprocess.run([*pip, "install", *offline, "--target", target, source], check=True)
            taken.append(time.perf_counter() - started)
        subprocess.run([*pip, "wheel", *offline, "-w", folder, source], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        files = [path for path in target.rglob("*") if path.is_file()]
        return {
            "pip_install_s": round(median(taken), 2),
            "wheel_bytes": wheel.stat().st_size,
            "installed_bytes": sum(path.stat().st_size for path in files if path.suffix != ".pyc"),
            "installed_bytes_with_bytecode": sum(path.stat().st_size for path in files),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels_import.json")
    asked = parser.parse_args()
    result = {
        "what": "seconds of imports in fresh processes and of pip install ./kernels --no-deps; medians",
        "machine": machine(),
        "rounds": asked.rounds,
        "cores and load": [os.cpu_count(), *os.getloadavg()],
        "imports": imports(asked.rounds),
        "installation": installation(3),
    }
    print(write(result, "kernels_import", asked.out))


if __name__ == "__main__":
    main()
