"""The predictions that are committed, for the report of a measurement to stand beside."""

from __future__ import annotations

import json
from pathlib import Path

from ..gpu.harness import name_of
from ..report import RESULTS


def path_of(triton: str) -> Path:
    return RESULTS / f"prediction-triton-{triton}.json"


def prediction(machine: dict) -> tuple[dict | None, dict[str, float]]:
    """What was predicted for the machine's device and Triton.

    Returns:
        The file's name and whether it was of the kernels that were measured (None: nothing was predicted), and the
        share of a copy's bandwidth by case.
    """
    path = path_of(machine.get("triton", ""))
    device = next((name for name in ("H100", "H200") if name in machine.get("device", "")), None)
    if device is None or not path.is_file():
        return None, {}
    found = json.loads(path.read_text(encoding="utf-8"))
    same = found["kernels_tree"] == machine.get("kernels_tree")
    shares = {name_of(case): case["share_of_copy"][device] for case in found["cases"]}
    return {"file": path.name, "device": device, "same_kernels": same}, shares
