"""`python -m benchmarks.predict`: the share of a copy's bandwidth that each op should reach, read from machine code.

Compiles every op of the benchmark as it would be launched, for all targets, with the Triton that is installed, and
writes results/prediction-triton-VERSION.json: registers, spills, barriers, instructions, waits and bytes in flight of
each kernel, and of each case its predicted time on H100 and H200. No GPU is needed, and none is asked. Some minutes.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from ..gpu.driver import VARIABLE
from ..gpu.harness import name_of

GOALS = {"forward": 0.90, "backward": 0.85}
DETAILED = "sm_90"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="JSON file; by default under benchmarks/results")
    out = parser.parse_args().out
    os.environ |= {VARIABLE: "stub", "TRITON_DEFAULT_FP_FUSION": "1"}
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    from ..report import write
    from .committed import path_of

    result = predict()
    print(table(result["cases"], result["kernels"]))
    path = write(result, "", out or path_of(triton.__version__))
    print(f"{path}; ! misses its goal: forward {GOALS['forward']:.0%}, backward {GOALS['backward']:.0%}")


def predict() -> dict:
    """Of all cases of the benchmark: see `benchmarks/README.md` for what the fields are."""
    import triton

    import pgdpo_kernels

    from ..gpu import stages
    from ..report import tree_hash
    from . import launches, model
    from .machine_code import TARGETS

    kernels: dict[str, dict] = {}
    cases = []
    for case in [*stages.hidden_cases(tiny=False), *stages.pair_cases(tiny=False)]:
        with pgdpo_kernels.set_backend("triton"):
            record = launches.of(lambda case=case: case.variants["fused"](case.make(0)))
        read = [model.read(launch, DETAILED) for launch in record.launches]
        us = {name: model.op_us(read, record.small, device) for name, device in model.DEVICES.items()}
        cases.append(
            {name: value for name, value in case.facts().items() if name not in ("tensor_bytes", "launches")}
            | {"us": us, "kernels": []}
        )
        cases[-1]["share_of_copy"] = {
            name: case.moved / us[name] / 1e3 / device.copy_gb_per_s for name, device in model.DEVICES.items()
        }
        for launch, (facts, _) in zip(record.launches, read, strict=True):
            of_it = {target: model.registers_of(launch.source, target) for target in TARGETS}
            one = {key: value for key, value in asdict(facts).items() if key != "programs"} | {
                "targets": of_it
            }
            name = f"{facts.kernel} {len(kernels)}"
            same = [key for key, known in kernels.items() if known == one]
            kernels |= {} if same else {name: one}
            cases[-1]["kernels"].append(same[0] if same else name)
    return {
        "triton": triton.__version__,
        "kernels_tree": tree_hash(Path(pgdpo_kernels.__file__).parents[1]),
        "constants": model.constants(),
        "kernels": kernels,
        "cases": cases,
    }


def table(cases: list[dict], kernels: dict[str, dict]) -> str:
    """One line a case, of its first kernel, which is the one that moves the bytes."""
    head = f"{'op':66} {'threads':>7} {'regs':>4} {'spill':>5} {'there':>5} {'turns':>5} {'bars':>4} {'instr':>5} "
    lines = [head + f"{'waits':>5} {'KB':>4} {'H100':>7} {'H200':>7}"]
    for case in cases:
        one = kernels[case["kernels"][0]]
        numbers = (
            f"{one['threads']:7} {one['registers']:4} {one['spill']:5} {one['resident']:5} {one['turns']:5} "
        )
        numbers += f"{one['barriers']:4} {one['instructions']:5} {one['load_phases']:5} "
        numbers += f"{one['bytes_in_flight'] / 1024:4.0f}"
        shares = "".join(
            f" {share:6.1%}{'!' if share < GOALS[case['direction']] else ' '}"
            for share in case["share_of_copy"].values()
        )
        lines.append(f"{name_of(case):66} {numbers}{shares}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
