"""`python -m benchmarks.predict.calibrate MEASURED [--out FILE]`: how far off the model is, and its constants fitted.

MEASURED is a result.json or a tuning.jsonl of an H100; the constants are judged as they stand in `model.py`. On a
tuning.jsonl they are then fitted: what it prints, rounded, is what stands there. With the kernels and the Triton that
were measured: `PYTHONPATH=.:CHECKOUT/kernels`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..gpu.harness import name_of
from . import without_a_gpu

FITTED = ("MEMORY_NS", "CACHE_NS", "BARRIER", "START", "ROOF")
SEVERE = 12.0  # points: an error beyond counts as this one, so that no single case pulls the constants
WIDE = 60e6  # bytes a tensor: below, it is launches that are measured


@dataclass
class Measured:
    name: str
    share: float
    moved: int
    tensor_bytes: int
    record: object  # launches.Record


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measured", type=Path, help="tuning.jsonl or result.json of an H100")
    parser.add_argument("--out", type=Path, help="JSON file for the errors, case by case")
    given = parser.parse_args()
    without_a_gpu()
    from . import model

    fitting = given.measured.suffix == ".jsonl"
    cases = list(tuned(given.measured) if fitting else judged(given.measured))
    rows = [
        {"case": case.name, "measured": case.share, "predicted": share, "off": 100 * (share - case.share)}
        for case, share in zip(cases, predicted(cases), strict=True)
    ]
    for row in rows:
        print(f"{row['case']:84} {row['measured']:7.1%} {row['predicted']:7.1%} {row['off']:+6.1f}")
    off = [row["off"] for row in rows]
    wide = [row["off"] for row, case in zip(rows, cases, strict=True) if case.tensor_bytes >= WIDE]
    found = {"all": summary(off), f"of {WIDE / 1e6:.0f} MB a tensor and more": summary(wide)}
    result = {"constants": model.constants(), "errors_in_points": found, "cases": rows}
    print(json.dumps(found, indent=1))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if fitting:
        fit(cases)


def summary(errors: list[float]) -> dict[str, float]:
    """In points of the copy's bandwidth."""
    return {
        "cases": len(errors),
        "mean": statistics.mean(map(abs, errors)),
        "worst": max(map(abs, errors)),
        "bias": statistics.mean(errors),
    }


def tuned(path: Path) -> Iterator[Measured]:
    """The settings of a tuning.jsonl, put into the launch table as `benchmarks.ops.tune` does."""
    from ..ops.test_hidden_ops import MODELS, model_cases

    # Kernels of older commits had the table in another module.
    table = next(
        module for name, module in sys.modules.items() if name.endswith(".rows") and "kernels" in name
    )
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("version") != "new":  # of kernels that were tried and not kept
            continue
        for launch in (
            {row["launch"], "norm_forward"} if row["launch"].endswith("_forward") else {row["launch"]}
        ):
            table.LAUNCHES[launch] = ((table.MAX_WIDTH, row["threads"], row["rows"]),)
        case = next(
            one
            for one in model_cases(MODELS[row["model"]])
            if (one.op, one.direction) == (row["op"], row["direction"])
        )
        yield measured(case, row["share_of_copy"], f" {row['threads']} threads {row['rows']} rows")


def judged(path: Path) -> Iterator[Measured]:
    from .cases import all_cases

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    shares = {name_of(row): row["share_of_copy"] for row in rows}
    for case in all_cases():
        if case.name in shares:
            yield measured(case, shares[case.name])


def measured(case, share: float, setting: str = "") -> Measured:
    from pgdpo_kernels import set_backend

    from . import launches

    with set_backend("triton"):
        record = launches.of(lambda: case.variants["fused"](case.make(0)))
    return Measured(case.name + setting, share, case.moved, case.tensor_bytes, record)


def predicted(cases: list[Measured]) -> list[float]:
    from . import model
    from .cases import MEASURED

    device = model.DEVICES["H100"]
    out = []
    for case in cases:
        read = [model.read(launch, MEASURED) for launch in case.record.launches]
        out.append(case.moved / model.op_us(read, case.record.small, device) / 1e3 / device.copy_gb_per_s)
    return out


def fit(cases: list[Measured]) -> None:
    """Step by step, one constant after the other, as long as the mean error falls: `model`'s are replaced."""
    from . import model

    def loss() -> float:
        pairs = zip(cases, predicted(cases), strict=True)
        return statistics.mean(min(SEVERE, 100 * abs(share - case.share)) for case, share in pairs)

    best, steps = loss(), dict.fromkeys(FITTED, 0.2)
    while max(steps.values()) > 0.01:
        for name in FITTED:
            before = getattr(model, name)
            for factor in (1 + steps[name], 1 / (1 + steps[name])):
                setattr(model, name, before * factor)
                if (now := loss()) < best:
                    best = now
                    break
            else:
                setattr(model, name, before)
                steps[name] /= 2
        print(f"{best:.3f} points", {name: round(getattr(model, name), 3) for name in FITTED}, flush=True)


if __name__ == "__main__":
    main()
