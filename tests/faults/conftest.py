"""Ranks that start fast, and the tally that `benchmarks/faults.py` writes down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.worlds import losses, write_config

ROOT = Path(__file__).resolve().parents[2]


class Zygote:
    """The other end of `zygote.py`, started when it is first asked for."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def ask(self, request: dict) -> dict:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"},  # eager ops: fast
            )
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the zygote ended with {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait(timeout=60)


@dataclass
class Job:
    """The ranks of one run."""

    zygote: Zygote
    pids: list[int]
    log: Path
    started: float = field(default_factory=time.time)
    exits: list[dict] | None = None

    def signal(self, rank: int, number: int) -> None:
        os.kill(self.pids[rank], number)

    def wait(self, timeout: float = 60) -> list[int]:
        """Exit codes by rank; no rank may hang longer than `timeout` seconds."""
        exits = self.zygote.ask({"pids": self.pids, "timeout": timeout})["exits"]
        hanging = [rank for rank, end in enumerate(exits) if end is None]
        if hanging:
            texts = "\n".join(f"--- rank {rank}\n{self.text(rank)}" for rank in hanging)
            self.destroy()
            raise AssertionError(f"ranks {hanging} still run after {timeout} s:\n{texts}")
        self.exits = exits
        return [end["code"] for end in exits]

    def wait_for(self, rank: int, timeout: float = 60) -> float:
        """The time at which one rank ended."""
        end = self.zygote.ask({"pids": [self.pids[rank]], "timeout": timeout})["exits"][0]
        if end is None:
            raise AssertionError(f"rank {rank} still runs after {timeout} s:\n{self.text(rank)}")
        return end["time"]

    def succeed(self, timeout: float = 60) -> None:
        codes = self.wait(timeout)
        if any(codes):
            texts = "\n".join(f"--- rank {rank}\n{self.text(rank)}" for rank in range(len(codes)))
            raise AssertionError(f"exit codes {codes}:\n{texts}")

    def text(self, rank: int) -> str:
        """What the rank printed."""
        return Path(f"{self.log}-rank{rank}.txt").read_text(errors="replace")

    def destroy(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.zygote.ask({"pids": self.pids, "timeout": 10})


@pytest.fixture(scope="session")
def zygote():
    server = Zygote()
    yield server
    server.close()


@pytest.fixture
def start(zygote, tmp_path):
    """`start("train", config, ranks=2, hook="name", ...) -> Job`; what still runs at the end is killed."""
    jobs: list[Job] = []

    def start(*arguments: object, ranks: int = 2, hook: str | None = None, **hook_options: object) -> Job:
        log = tmp_path / f"job{len(jobs)}"
        request = {"argv": [str(a) for a in arguments], "ranks": ranks, "log": str(log)}
        answer = zygote.ask({**request, "hook": hook, "hook_options": hook_options})
        jobs.append(Job(zygote, answer["pids"], log))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.exits is None:
            job.destroy()


def write_fault_config(folder: Path, world: Path) -> Path:
    """60 small steps: 4 pairs a step in micro-batches of 1, a checkpoint every 2 steps."""
    output = folder / "out"
    output.mkdir()
    for shared in ("prepared", "toy"):
        (output / shared).symlink_to(world / "out" / shared)
    train = {"steps": 60, "global_batch_pairs": 4, "micro_batch_pairs": 1, "checkpoint_every": 2}
    return write_config(folder / "config.yaml", output, world / "tiny_wan", train=train)


@pytest.fixture
def fault_config(world, tmp_path) -> Path:
    return write_fault_config(tmp_path, world)


@pytest.fixture(scope="session")
def straight(zygote, world, tmp_path_factory):
    """`straight(steps)`: the losses of a run on two ranks that nothing happens to."""
    curves: dict[int, list[float]] = {}

    def straight(steps: int) -> list[float]:
        length = 14 if steps <= 14 else 60
        if length not in curves:
            folder = tmp_path_factory.mktemp("straight")
            config = write_fault_config(folder, world)
            log = folder / "straight"
            argv = [
                "train",
                str(config),
                "name=straight",
                f"train.steps={length}",
                "train.checkpoint_every=60",
            ]
            request = {"argv": argv, "ranks": 2, "log": str(log), "hook": None, "hook_options": {}}
            Job(zygote, zygote.ask(request)["pids"], log).succeed(120)
            curves[length] = losses(folder / "out", "straight")
        return curves[length][:steps]

    return straight


@pytest.fixture
def tally(request):
    """`tally(number, tried, survived)`: a fault's figures, for `benchmarks/faults.py`.

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
