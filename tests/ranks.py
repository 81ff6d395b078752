"""Runs on several ranks, of a server that forks them and takes jobs: see `tests/zygote.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What decides bits on a CPU, held at what most of them have. COMPATIBLE is the one mode of MKL that is the same on
# every maker's processors. No GPU is seen, and without Triton's interpreter the eager twins of the kernels run.
PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "TRITON_INTERPRET": "0",
}


class Zygote:
    """The other end of `zygote.py`, started when it is first asked for.

    Its ranks begin in the environment `PINNED`, which the golden runs need, and `interpreted` with Triton's
    interpreter in the place of the kernels' eager twins, which are far faster.
    """

    def __init__(self, *, interpreted: bool = False) -> None:
        self._environment = PINNED | {"TRITON_INTERPRET": str(int(interpreted))}
        self._process: subprocess.Popen | None = None

    def ask(self, request: dict) -> dict:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, **self._environment},
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

    def values(self, timeout: float = 60) -> list:
        """What the job's function returned, by rank."""
        self.succeed(timeout)
        return [json.loads(Path(f"{self.log}-rank{rank}.json").read_text()) for rank in range(len(self.pids))]

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


@dataclass
class Ranks:
    """Starts jobs whose logs lie in `folder`."""

    zygotes: dict[bool, Zygote]
    folder: Path
    jobs: list[Job] = field(default_factory=list)

    def start(
        self,
        commands: Sequence[Sequence[object]] = (),
        *,
        ranks: int = 2,
        function: Callable | None = None,
        arguments: Sequence[object] = (),
        hook: str | None = None,
        interpreted: bool = False,
        **hook_options: object,
    ) -> Job:
        """Commands of pgdpo, one after another in the same ranks; or a module's function with JSON's arguments."""
        zygote, log = self.zygotes[interpreted], self.folder / f"job{len(self.jobs)}"
        request = {"ranks": ranks, "log": str(log), "arguments": arguments, "path": sys.path}
        request |= {"function": function and (function.__module__, function.__name__)}
        request |= {"commands": [[str(word) for word in command] for command in commands]}
        answer = zygote.ask({**request, "hook": hook, "hook_options": hook_options})
        self.jobs.append(Job(zygote, answer["pids"], log))
        return self.jobs[-1]

    def run(self, *commands: Sequence[object], timeout: float = 240, **options) -> None:
        """Start commands and wait for their success."""
        self.start(commands, **options).succeed(timeout)

    def train(self, config: Path, runs: dict[str, Sequence[str]], timeout: float = 800, **options) -> None:
        """Trainings of one configuration, name -> overrides, one after another in the same ranks."""
        commands = [["train", config, f"name={name}", *overrides] for name, overrides in runs.items()]
        self.run(*commands, timeout=timeout, **options)

    def call(self, function: Callable, *arguments: object, timeout: float = 240, **options) -> list:
        """What the function returns on each rank."""
        return self.start(function=function, arguments=arguments, **options).values(timeout)

    def end(self) -> None:
        """Kill what still runs."""
        for job in self.jobs:
            if job.exits is None:
                job.destroy()
