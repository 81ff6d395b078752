"""`python -m benchmarks.predict`: the share of a copy's bandwidth that each op should reach, read from machine code.

Compiles every op of the benchmark as it would be launched, for all targets, with the Triton that is installed, and
writes results/prediction-triton-VERSION.json: registers, spills, barriers, instructions, waits and bytes in flight of
each kernel, and of each case its predicted time on H100 and H200. No GPU is needed, and none is asked. Some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..gpu.harness import name_of
from . import without_a_gpu

GOALS = {"forward": 0.90, "backward": 0.85}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="JSON file; by default under benchmarks/results")
    out = parser.parse_args().out
    without_a_gpu()
    import triton

    from ..report import write
    from .cases import predict
    from .committed import path_of

    result = predict()
    print(table(result["cases"], result["kernels"]))
    path = write(result, "", out or path_of(triton.__version__))
    print(f"{path}; ! misses its goal: forward {GOALS['forward']:.0%}, backward {GOALS['backward']:.0%}")


def table(cases: list[dict], kernels: dict[str, dict]) -> str:
    """One line a case, of its first kernel, which is the one that moves the bytes."""
    head = f"{'op':66} {'threads':>7} {'regs':>4} {'spill':>5} {'there':>5} {'turns':>5} {'bars':>4} {'instr':>5} "
    lines = [head + f"{'waits':>5} {'KB':>4} {'H100':>7} {'H200':>7}"]
    for case in cases:
        kernel = kernels[case["kernels"][0]]
        one = kernel["targets"]["sm_90"]
        numbers = f"{kernel['threads']:7} {one['registers']:4} {one['spill']:5} {one['resident']:5} "
        numbers += f"{kernel['turns']:5} {one['barriers']:4} {one['instructions']:5} {one['load_phases']:5} "
        numbers += f"{one['bytes_in_flight'] / 1024:4.0f}"
        shares = "".join(
            f" {share:6.1%}{'!' if share < GOALS[case['direction']] else ' '}"
            for share in case["share_of_copy"].values()
        )
        lines.append(f"{name_of(case):66} {numbers}{shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
