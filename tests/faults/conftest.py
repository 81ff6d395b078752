"""Runs to put faults into, and the tally that `benchmarks/runs/faults.py` writes down."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.ranks import Ranks
from tests.worlds import losses, write_config


@pytest.fixture
def start(ranks):
    """`start("train", config, ranks=2, hook="name", ...) -> Job`; what still runs at the end is killed."""
    return lambda *command, **options: ranks.start([command], **options)


def write_fault_config(folder: Path, world: Path) -> Path:
    """60 small steps: 4 pairs a step in micro-batches of 1, a checkpoint every 2 steps."""
    output = folder / "out"
    output.mkdir()
    for shared in ("prepared", "toy"):
        (output / shared).symlink_to(world / "out" / shared)
    train = {"steps": 60, "global_batch_groups": 4, "micro_batch_groups": 1, "checkpoint_every": 2}
    return write_config(folder / "config.yaml", output, world / "tiny_wan", train=train)


@pytest.fixture
def fault_config(world, tmp_path) -> Path:
    return write_fault_config(tmp_path, world)


@pytest.fixture(scope="session")
def straight(zygotes, world, tmp_path_factory):
    """`straight(steps)`: the losses of a run on two ranks that nothing happens to."""
    curves: dict[int, list[float]] = {}

    def straight(steps: int) -> list[float]:
        length = 14 if steps <= 14 else 60
        if length not in curves:
            folder = tmp_path_factory.mktemp("straight")
            config = write_fault_config(folder, world)
            overrides = [f"train.steps={length}", "train.checkpoint_every=60"]
            Ranks(zygotes, folder).train(config, {"straight": overrides}, timeout=120)
            curves[length] = losses(folder / "out", "straight")
        return curves[length][:steps]

    return straight


@pytest.fixture
def tally(request):
    """`tally(number, tried, survived)`: a fault's figures, for `benchmarks/runs/faults.py`.

    With FAULTS_JSONL set they are appended there, with the seconds since the test began.
    """
    began = time.perf_counter()

    def record(number: int, tried: int, survived: int, **figures: object) -> None:
        path = os.environ.get("FAULTS_JSONL")
        if path:
            row = {"fault": number, "test": request.node.name, "tried": tried, "survived": survived}
            row |= {"seconds": round(time.perf_counter() - began, 1), **figures}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        assert survived == tried, f"fault {number}: {survived} of {tried} survived"

    return record
