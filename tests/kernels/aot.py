"""Compile every kernel for real GPUs on a machine without one, and report registers, spills and load widths.

`python aot.py` prints the table, with `--full` of every combination; `--json` is for the tests. Runs without
TRITON_INTERPRET and with a fresh TRITON_CACHE_DIR: the cache would hide a kernel that no longer compiles.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # as a script it is started from anywhere

from benchmarks.predict.machine_code import TARGETS, Source, build, usage  # noqa: E402

# Bytes that ptxas puts aside by itself, below the registers that there are, by Triton's version, which brings it.
# Nothing else may.
SPILLS = {
    ("3.9", "qk_backward 1536 bf16", "sm_100"): 16,
    ("3.9", "norm_backward 1536 fp32 summed", "sm_80"): 8,
    ("3.9", "qk_backward 2048 fp32 summed", "sm_100"): 24,
    ("3.9", "norm_backward 2048 bf16 summed", "sm_120"): 24,
    ("3.9", "partial_sums bf16 ref mask", "sm_120"): 8,
    ("3.9", "norm_rope_backward 2048 bf16 summed halves", "sm_120"): 8,
    ("3.9", "gate_heads_backward 4096 fp32", "sm_100"): 8,
    ("3.6", "norm_backward 1536 fp32 summed", "sm_90"): 8,
    ("3.6", "norm_backward 2048 bf16 summed", "sm_80"): 8,
    ("3.6", "norm_forward 2048 fp32 many branch", "sm_90"): 16,
    ("3.6", "norm_forward 5120 fp32 many branch", "sm_80"): 16,
    ("3.6", "norm_forward 5120 fp32 many branch", "sm_89"): 16,
    ("3.6", "qk_forward 1152 bf16", "sm_89"): 8,
    ("3.6", "qk_backward 1920 bf16", "sm_120"): 8,
}


@dataclass
class Case:
    """One kernel with one choice of dtypes and constants, as its launcher would compile it."""

    name: str
    kernel: object
    pointers: dict[str, str]  # argument -> element type; every one 16-byte aligned, as torch allocates
    constants: dict[str, object]
    threads: int
    floats: tuple[str, ...] = ()  # fp32 scalars; every other argument is an int32
    fp_fusion: bool = True
    fused: int | None = (
        0  # multiply-adds in a kernel without fusion that are its own; None: functions like log have some
    )
    cuda_registers: int | None = None  # the launcher's `maxnreg`
    wide_loads: int = 0  # 128-bit loads that there must be at least, one per tensor and turn
    wide_stores: int = 0
    narrow: int = 0  # loads and stores of 8 or 16 bits that it may have, of a number a head
    registers: int = 255  # at most, on sm_90


@dataclass
class Report:
    name: str
    target: str
    registers: int
    spill: int
    shared: int
    wide_loads: int
    wide_stores: int
    narrow: int  # 8- and 16-bit loads and stores
    failures: list[str] = field(default_factory=list)


def compile_case(case: Case, target: str) -> Report:
    scalars = {name: "fp32" if name in case.floats else "i32" for name in case.kernel.arg_names}
    pointers = {name: f"*{kind}" for name, kind in case.pointers.items()}
    types = {name: kind for name, kind in (scalars | pointers).items() if name not in case.constants}
    source = Source(
        case.kernel,
        types,
        case.constants,
        frozenset(pointers),
        case.threads,
        case.fp_fusion,
        case.cuda_registers,
    )
    compiled = build(source, target)
    backend = TARGETS[target][0]
    text = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    report = Report(
        case.name, target, *usage(compiled, target), compiled.metadata.shared, *widths(text, backend)
    )
    report.failures = failures(case, report)
    if not case.fp_fusion and case.fused is not None and text.count("fma.rn") > case.fused:
        report.failures.append("fused multiply-adds, which change the bits")
    return report


def widths(text: str, backend: str) -> tuple[int, int, int]:
    """128-bit global loads and stores, and those of 8 or 16 bits."""
    if backend == "cuda":
        patterns = (
            r"ld\.global[\w.:]*\.v4\.[bu]32|ld\.global[\w.:]*\.v2\.[bu]64",
            r"st\.global[\w.:]*\.v4\.[bu]32|st\.global[\w.:]*\.v2\.[bu]64",
            r"(?:ld|st)\.global[\w.:]*\.[bus](?:8|16)\b",
        )
    else:
        patterns = (
            r"(?:global|buffer)_load_dwordx4",
            r"(?:global|buffer)_store_dwordx4",
            r"(?:global|buffer)_(?:load|store)_(?:\w*short|\w*byte)\w*",
        )
    return tuple(len(re.findall(pattern, text)) for pattern in patterns)


def triton_version() -> str:
    import triton

    return triton.__version__


def failures(case: Case, report: Report) -> list[str]:
    out, version = [], triton_version().rpartition(".")[0]
    if report.spill > SPILLS.get((version, report.name, report.target), 0):
        out.append(f"spills {report.spill}")
    if case.wide_loads + case.wide_stores and report.narrow > case.narrow:
        out.append(f"{report.narrow} loads or stores of 8 or 16 bits")
    if report.wide_loads < case.wide_loads:
        out.append(f"{report.wide_loads} 128-bit loads, expected {case.wide_loads}")
    if report.wide_stores < case.wide_stores:
        out.append(f"{report.wide_stores} 128-bit stores, expected {case.wide_stores}")
    if report.target == "sm_90" and report.registers > case.registers:
        out.append(f"{report.registers} registers, the bound is {case.registers}")
    return out


def run_in_subprocess(*arguments: str) -> list[Report]:
    """The reports for all targets, compiled in a fresh process and cache."""
    with tempfile.TemporaryDirectory() as cache:
        env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        env |= {"TRITON_CACHE_DIR": cache, "TRITON_DEFAULT_FP_FUSION": "1"}
        command = [sys.executable, __file__, "--json", *arguments]
        result = subprocess.run(command, env=env, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"ahead-of-time compilation failed:\n{result.stderr[-4000:]}")
    return [Report(**row) for row in json.loads(result.stdout)]


def table(reports: list[Report]) -> str:
    head = f"{'kernel':44} {'target':7} {'regs':>4} {'spill':>5} {'shared':>6} {'ld128':>5} {'st128':>5}"
    rows = (
        f"{r.name:44} {r.target:7} {r.registers:4} {r.spill:5} {r.shared:6} "
        f"{r.wide_loads:5} {r.wide_stores:5}" + "".join(f"  ! {failure}" for failure in r.failures)
        for r in reports
    )
    return "\n".join((head, *rows))


def main() -> None:
    from aot_cases import cases

    full = "--full" in sys.argv
    chosen = cases(full)
    if not full:  # elsewhere only the last of each kernel, which has the most switches
        fullest = {case.kernel: case for case in chosen}.values()
    reports = [
        compile_case(case, target)
        for case in chosen
        for target in TARGETS
        if full or target == "sm_90" or case in fullest
    ]
    if "--json" in sys.argv:
        print(json.dumps([asdict(report) for report in reports]))
    else:
        print(
            f"Compiled without a GPU by triton {triton_version()}: python tests/kernels/aot.py{' --full' * full}\n"
        )
        print(table(reports))


if __name__ == "__main__":
    main()
