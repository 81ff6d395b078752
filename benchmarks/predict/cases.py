"""The cases of the benchmark, each with what is predicted of it and what its kernels are on every target."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import triton

import pgdpo_kernels

from ..gpu import stages
from ..report import tree_hash
from . import launches, model
from .machine_code import TARGETS

MEASURED = "sm_90"  # whose devices the model's constants are of


def predict() -> dict:
    """Of all cases of the benchmark, in as many processes as there are cores."""
    kernels: dict[str, dict] = {}
    cases = []
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for case, of_it in pool.imap(predict_case, range(len(all_cases())), chunksize=2):
            for one in of_it:
                same = next((name for name, known in kernels.items() if known == one), None)
                name = same or f"{one['kernel']} {len(kernels)}"
                kernels[name] = one
                case["kernels"].append(name)
            cases.append(case)
    return {
        "triton": triton.__version__,
        "kernels_tree": tree_hash(Path(pgdpo_kernels.__file__).parents[1]),
        "constants": model.constants(),
        "kernels": kernels,
        "cases": cases,
    }


def all_cases() -> list:
    return [*stages.hidden_cases(tiny=False), *stages.pair_cases(tiny=False)]


def predict_case(place: int) -> tuple[dict, list[dict]]:
    """One case with what is predicted of it, and what each of its launches is on every target."""
    case = all_cases()[place]
    with pgdpo_kernels.set_backend("triton"):
        record = launches.of(lambda: case.variants["fused"](case.make(0)))
    read = [model.read(launch, MEASURED) for launch in record.launches]
    us = {name: model.op_us(read, record.small, device) for name, device in model.DEVICES.items()}
    shares = {
        name: case.moved / us[name] / 1e3 / device.copy_gb_per_s for name, device in model.DEVICES.items()
    }
    facts = {name: value for name, value in case.facts().items() if name not in ("tensor_bytes", "launches")}
    kernels = [
        {
            "kernel": launch.source.kernel.__name__,
            "threads": launch.source.threads,
            "turns": one.turns,
            "targets": {target: model.on_target(launch, target) for target in TARGETS},
        }
        for launch, (one, _) in zip(record.launches, read, strict=True)
    ]
    return facts | {"us": us, "share_of_copy": shares, "kernels": []}, kernels
