"""Memory and time of the k-th neighbours that `data.select`'s fifa looks for:

    python -m benchmarks.data.neighbours [--prompts 100000] [--rows 512]

-> results/neighbours.json. Random unit vectors of T5-XXL's width stand for the prompts. All of `--prompts` are held,
and the neighbours of the first `--rows` of them are found among all; the time of all is extrapolated from that, and
said to be so. `whole` finds those of all of a fiftieth of the prompts. Peak memory is the process's own (`ru_maxrss`),
with and without what it had before the vectors were made.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

from pgdpo.data.curation import neighbours
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.files.atomic import write_json

from ..report import RESULTS

FILE = RESULTS / "neighbours.json"
WIDTH, KTH = 4096, 5


def points(count: int) -> torch.Tensor:
    """Made in place: nothing of their size stands beside them."""
    made = torch.empty(count, WIDTH)
    generator = torch.Generator().manual_seed(0)
    for part in made.split(1024):
        part.normal_(generator=generator)
        part /= part.norm(dim=1, keepdim=True)
    return made


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=512)
    asked = parser.parse_args()
    before = peak()
    few = points(asked.prompts // 50)
    started = time.perf_counter()
    neighbours.neighbour_entropy(few, KTH)
    whole = {"prompts": len(few), "seconds": round(time.perf_counter() - started, 1)}
    del few
    many = points(asked.prompts)
    distances = torch.empty(len(many), dtype=torch.float64)
    rows = torch.arange(min(asked.rows, len(many)))
    started = time.perf_counter()
    doubtful = neighbours._nearest(many, rows, KTH, KTH + neighbours.SPARE, torch.float32, distances)
    seconds = time.perf_counter() - started
    result = {
        "width": WIDTH,
        "k": KTH,
        "whole": whole,
        "prompts": len(many),
        "vectors_bytes": many.nbytes,
        "peak_bytes": peak(),
        "peak_bytes_beside_the_start": peak() - before,
        "rows": len(rows),
        "rows_named_anew_in_float64": len(doubtful),
        "seconds_of_these_rows": round(seconds, 1),
        "seconds_of_all_rows_extrapolated": round(seconds * len(many) / len(rows)),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(FILE, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
