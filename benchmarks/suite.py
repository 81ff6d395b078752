"""Everything that needs a GPU, within ten minutes: `python -m benchmarks.suite`.

Correctness first (the kernels' tests and the exactness figures, on the device), then speed. Leaves
benchmarks/results/<device>-<date>.json and a PNG beside it. Without a GPU it prints the bytes that each op must move.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from . import (
    exactness,
    harness,
    test_diffusion_dpo,
    test_hidden_ops,
    test_noise_pair,
    test_pair_errors,
    test_wan_step,
)
from .plot import roofline
from .report import machine, write

ROOT = Path(__file__).resolve().parent.parent
CASES = [*test_diffusion_dpo.CASES, *test_pair_errors.CASES, *test_noise_pair.CASES]
CASES += [*test_hidden_ops.CASES, *test_wan_step.CASES]


def kernel_tests(seconds: float) -> dict:
    """Run tests/kernels on the device; what failed is kept by name."""
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider", "--tb=line"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"passed": False, "summary": f"not finished after {seconds:.0f} s", "failed": []}
    lines = result.stdout.strip().splitlines()
    return {
        "passed": result.returncode == 0,
        "summary": lines[-1] if lines else result.stderr[-500:],
        "failed": re.findall(r"^FAILED (\S+)", result.stdout, re.MULTILINE),
    }


def speed(cases: list[harness.Case], deadline: float) -> tuple[list[harness.Row], list[str], dict]:
    """Rows, the names of cases that the time did not allow, and the two measures that rows are relative to."""
    roof = {"copy_gb_per_s": harness.copy_bandwidth(), "empty_launch_us": harness.empty_launch()}
    rows, left = [], []
    for case in cases:
        if time.monotonic() > deadline:
            left.append(case.name)
            continue
        rows.append(harness.measure(case, roof["copy_gb_per_s"], roof["empty_launch_us"]))
        print(harness.table(rows[-1:]).splitlines()[-1], flush=True)
        torch.cuda.empty_cache()
    return rows, left, roof


def run(
    *, ops: list[str] | None = None, minutes: float = 9.0, tests: bool = True, out: Path | None = None
) -> Path | None:
    """Measure, print, write. Returns the JSON file, None without a GPU.

    Args:
        ops: names of ops to measure, all by default.
        minutes: after which no further case is started.
        tests: also run the kernels' tests first.
        out: the JSON file.
    """
    known = sorted({case.op for case in CASES})
    if ops and set(ops) - set(known):
        raise ValueError(f"unknown ops {sorted(set(ops) - set(known))}; known: {', '.join(known)}")
    cases = [case for case in CASES if not ops or case.op in ops]
    if not torch.cuda.is_available():
        print(harness.byte_table(cases))
        print("\nNo GPU here: these are the bytes that each op must move. No speed was measured.")
        return None
    deadline = time.monotonic() + 60 * minutes
    result = {"machine": machine()}
    if tests:
        result["tests"] = kernel_tests(0.45 * 60 * minutes)
        print(result["tests"]["summary"], flush=True)
    result["exactness"] = exactness.run(["eager", "triton"], "cuda")
    print(harness.table([]))
    rows, left, roof = speed(cases, deadline)
    result |= roof | {"rows": [asdict(row) for row in rows], "not_measured": left}
    path = write(result, "", out)
    roofline(result, path.with_suffix(".png"))
    print(
        f"\n{harness.table(rows)}\ncopy {roof['copy_gb_per_s']:.0f} GB/s, empty launch {roof['empty_launch_us']:.1f} us"
    )
    print(f"{len(left)} cases not measured for lack of time\n{path}")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help="ops to measure, all by default")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--no-tests", action="store_true", help="measure without testing first")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    run(ops=arguments.ops, minutes=arguments.minutes, tests=not arguments.no_tests, out=arguments.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
