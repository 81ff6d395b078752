"""Run without TRITON_INTERPRET: reads a kernel of known contents, records an op's launch, and prints what was found."""

import json
import os
import sys
from dataclasses import asdict

os.environ["PGDPO_BENCH_DRIVER"] = "stub"

import torch
import triton
import triton.language as tl

import pgdpo_kernels
from benchmarks.predict import launches, model
from benchmarks.predict.path import accesses

ROWS, WIDTH, THREADS, CHUNK = 4096, 1024, 128, 8


@triton.jit
def sums_in_a_loop(x, vector, y, rows, SUMS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """SUMS block sums a row, each of which waits for the one before; the vector is loaded once."""
    column = tl.arange(0, WIDTH)
    gain = tl.load(vector + column)
    row = tl.program_id(0) * CHUNK
    end = tl.minimum(row + CHUNK, rows)
    while row < end:
        a = tl.load(x + row.to(tl.int64) * WIDTH + column)
        for _ in tl.static_range(SUMS):
            a = a * tl.sum(a)
        tl.store(y + row.to(tl.int64) * WIDTH + column, a * gain)
        row += 1


def contents(sums: int, target: str) -> dict:
    x, vector, y = torch.empty(ROWS, WIDTH), torch.empty(WIDTH), torch.empty(ROWS, WIDTH)

    def call():
        sums_in_a_loop[(ROWS // CHUNK,)](x, vector, y, ROWS, sums, CHUNK, WIDTH, num_warps=THREADS // 32)

    (launch,) = launches.of(lambda: call).launches
    path = model.compiled(launch.source, target).paths[0]
    of = {
        place: (path.steps[place].opcode, place in path.loop, sorted(names))
        for place, names in accesses(path, launch.source, target).items()
    }
    facts, demand = model.read(launch, target)
    return {
        "accesses": list(of.values()),
        "shuffles": path.in_a_turn("SHFL"),
        "facts": asdict(facts),
        "demand": asdict(demand),
    }


def recorded() -> dict:
    """The launch of an op on tensors of 2 GB that nobody fills: on the CPU, with the settings of a GPU."""

    def prepare():
        x = torch.randn(1, 200_000, 5120, dtype=torch.bfloat16)
        gate = torch.randn(1, 6, 5120).chunk(6, dim=1)[2]
        return lambda: pgdpo_kernels.gate_residual(x, x, gate)

    with pgdpo_kernels.set_backend("triton"):
        (launch,) = launches.of(prepare).launches
    source = launch.source
    return {
        "kernel": source.kernel.__name__,
        "programs": launch.programs,
        "threads": source.threads,
        "emulates": source.constants["EMULATE_BF16"],
        "types": source.types,
        "aligned": sorted(source.aligned),
    }


if __name__ == "__main__":
    found = {f"{sums} {target}": contents(sums, target) for sums in (1, 3) for target in sys.argv[1:]}
    print(json.dumps({"contents": found, "recorded": recorded()}))
