"""`python -m benchmarks.predict.calibrate MEASURED [--out FILE]`: the model's constants fitted, and how far off it is.

MEASURED is a tuning.jsonl, on which the constants are fitted, or a result.json, on which they are judged as they stand
in `model.py`. With the kernels and the Triton that were measured: `PYTHONPATH=.:CHECKOUT/kernels`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..gpu.driver import VARIABLE

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
    os.environ |= {VARIABLE: "stub", "TRITON_DEFAULT_FP_FUSION": "1"}
    os.environ.pop("TRITON_INTERPRET", None)
    from . import model

    if given.measured.suffix == ".jsonl":
        cases = list(tuned(given.measured))
        fit(cases)
    else:
        cases = list(judged(given.measured))
    shares = predicted(cases)
    errors = {case.name: 100 * (share - case.share) for case, share in zip(cases, shares, strict=True)}
    for case, share in zip(cases, shares, strict=True):
        print(f"{case.name:84} {case.share:7.1%} {share:7.1%} {errors[case.name]:+6.1f}")
    wide = [errors[case.name] for case in cases if case.tensor_bytes >= WIDE]
    found = {
        "all": summary(list(errors.values())),
        f"of {WIDE / 1e6:.0f} MB a tensor and more": summary(wide),
    }
    print(json.dumps({"constants": {name: getattr(model, name) for name in FITTED}, **found}, indent=1))
    if given.out:
        rows = [
            {"case": case.name, "measured": case.share, "predicted": share, "off": errors[case.name]}
            for case, share in zip(cases, shares, strict=True)
        ]
        given.out.write_text(
            json.dumps({"constants": model.constants(), "errors": found, "cases": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


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
    from ..gpu import stages

    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    shares = {
        (row["op"], row["direction"], *row["shape"], row["dtype"]): row["share_of_copy"] for row in rows
    }
    for case in [*stages.hidden_cases(tiny=False), *stages.pair_cases(tiny=False)]:
        facts = case.facts()
        if share := shares.get((facts["op"], facts["direction"], *facts["shape"], facts["dtype"])):
            yield measured(case, share)


def measured(case, share: float, setting: str = "") -> Measured:
    from pgdpo_kernels import set_backend

    from . import launches

    with set_backend("triton"):
        record = launches.of(lambda: case.variants["fused"](case.make(0)))
    return Measured(case.name + setting, share, case.moved, case.tensor_bytes, record)


def predicted(cases: list[Measured]) -> list[float]:
    from . import model

    device = model.DEVICES["H100"]
    out = []
    for case in cases:
        read = [model.read(launch, "sm_90") for launch in case.record.launches]
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
