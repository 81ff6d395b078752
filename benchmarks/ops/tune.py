"""`python -m benchmarks.ops.tune --out DIR`: every launch setting of the row ops, timed: what `LAUNCHES` is of.

Writes tuning.jsonl, a row a setting, and prints the fastest of each op and width. Rows are appended as they are known.
On a GPU 250 settings take a minute; all are compiled in parallel before the first is timed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

from pgdpo_kernels import set_backend
from pgdpo_kernels.hidden import rows

from ..gpu import harness
from ..gpu.driver import driver
from ..report import machine
from .test_hidden_ops import MODELS, TINY, model_cases

THREADS, ROWS = (64, 128, 256, 512), (1, 2, 4)
LAUNCH_OF = {
    ("norm_modulate", "forward"): "norm_forward",
    ("gate_residual_norm_modulate", "forward"): "gate_norm_forward",
    ("norm_modulate", "backward"): "norm_backward",
    ("gate_residual_norm_modulate", "backward"): "gate_norm_backward",
    ("gate_residual", "forward"): "gate",
    ("gate_residual", "backward"): "gate",
    ("qk_norm_rope", "forward"): "qk_forward",
    ("qk_norm_rope", "backward"): "qk_backward",
}
Setting = tuple[str, int, int, int]  # model, place of the case, threads, rows a program


def settings(models: dict[str, tuple]) -> Iterator[Setting]:
    """12 to 80 elements a thread: with fewer, threads idle; with more, registers spill."""
    for model, sizes in models.items():
        for case, threads, count in itertools.product(range(len(model_cases(sizes))), THREADS, ROWS):
            if driver().stub or 12 <= sizes[1] / threads <= 80:
                yield model, case, threads, count


def chosen(setting: Setting, tokens: int | None = None) -> tuple[str, harness.Case]:
    """Put the setting into the launch table; the name of its line, and the case to time."""
    model, place, threads, count = setting
    sizes = (MODELS | TINY)[model]
    case = model_cases((tokens or sizes[0], *sizes[1:]))[place]
    launch = LAUNCH_OF[case.op, case.direction]
    rows.LAUNCHES[launch] = ((rows.MAX_WIDTH, threads, count),)
    return launch, case


def compile_one(setting: Setting) -> None:
    """Into Triton's cache, on a few rows: row counts are no part of a kernel."""
    with set_backend("triton"):
        _, case = chosen(setting, tokens=32)
        case.variants["fused"](case.make(0))()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops.tune", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of tuning.jsonl")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    todo = list(settings(TINY if driver().stub else MODELS))
    with multiprocessing.get_context("spawn").Pool(max(1, (os.cpu_count() or 2) - 1)) as pool:
        pool.map(compile_one, todo, chunksize=1)
    copy, best = harness.copy_bandwidth(), {}
    with (out / "tuning.jsonl").open("a", encoding="utf-8") as file, set_backend("triton"):
        file.write(json.dumps({"machine": machine(), "copy_gb_per_s": copy}) + "\n")
        for setting in todo:
            launch, case = chosen(setting)
            times = harness.measure(case, ["fused"], functools.partial(print, setting), 2.0)
            if not times:
                continue  # what it raised has been printed
            us = harness.median_us(times["fused"])
            row = {"launch": launch, "model": setting[0], "threads": setting[2], "rows": setting[3], "us": us}
            row |= {"share_of_copy": case.moved / us / 1e3 / copy} | case.facts()
            file.write(json.dumps(row) + "\n")
            file.flush()
            key = case.name
            if key not in best or us < best[key]["us"]:
                best[key] = row
    for name, row in best.items():
        print(
            f"{name:64} {row['threads']:4} threads {row['rows']} rows {row['share_of_copy']:7.1%} of a copy"
        )


if __name__ == "__main__":
    main()
