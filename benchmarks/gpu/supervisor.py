"""Runs jobs one after another in a process that may die: whatever happens to it, the next job begins in another.

This process never touches CUDA, so that it can fork workers that have all imports behind them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from .driver import driver
from .rows import ALWAYS, STAGES, Rows, read
from .stages import Emit, Job, describe_error, jobs

RESERVE = 15.0  # seconds kept for the last stage and the summary
GRACE = 10.0  # seconds from a job's limit until its process is killed
LEAST = 3.0  # seconds: with less no job is begun


class OutOfTime(BaseException):
    """No `Exception`: a library that catches those must not swallow it."""


class Worker:
    """A process with a session of its own, so that what it starts can be killed with it."""

    def __init__(self, method: str, arguments: tuple):
        context = multiprocessing.get_context(method)
        self._requests, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, os.getpid(), *arguments))
        self._process.start()
        theirs.close()
        self.healthy = True

    def run(self, index: int, seconds: float) -> str | None:
        """Hand over a job. Returns why it was cut off, None if it came back by itself."""
        try:
            self._requests.send((index, seconds))
            if self._requests.poll(seconds + GRACE):
                self.healthy = self._requests.recv()
                return None
            return f"did not end by itself {GRACE:.0f} s after its limit of {seconds:.0f} s: killed"
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            cause = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            return f"its process died ({cause})"

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # one that has no session of its own yet
        self._process.join()
        self._requests.close()


def _work(requests: Connection, parent: int, out: str, scratch: str, ops: list[str] | None) -> None:
    os.setsid()
    for kind in (signal.SIGTERM, signal.SIGINT):  # the parent's handlers end a run, not a worker
        signal.signal(kind, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, _out_of_time)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    rows, todo = Rows(Path(out)), jobs(out, scratch, ops)
    while True:
        index, seconds = requests.recv()
        _run(todo[index], rows, seconds)
        requests.send(_healthy())


def _run(job: Job, rows: Rows, seconds: float) -> None:
    emit = emitter(job, rows)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            job.run(emit)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except OutOfTime:
        emit("out of time", why=f"not finished after {seconds:.0f} s")
    except Exception as error:
        emit("failed", why=describe_error(error))


def _healthy() -> bool:
    """Whether the device still works here: after an illegal access every later call of the process fails."""
    try:
        torch.zeros(1, device=driver().name)
        driver().synchronize()
        return True
    except Exception:
        return False


def emitter(job: Job, rows: Rows) -> Emit:
    """What writes this job's rows, and shows each."""

    def emit(status: str, **data: object) -> dict:
        row = rows.add(job.stage, job.name, status, **data)
        told = data.get("why") or ", ".join(f"{k} {v:.1f} us" for k, v in dict(data.get("us", {})).items())
        print(f"{job.stage:9} {job.name:66} {status} {str(told)[:160]}".rstrip(), flush=True)
        return row

    return emit


def _out_of_time(*_: object) -> None:
    raise OutOfTime


def _die_with(parent: int) -> None:
    """A killed parent takes its workers and what they started along."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


class Supervisor:
    """Hands out jobs until there are none or the time is over.

    Args:
        out: the folder of the rows; jobs that are `ok` in it already are not run again.
        deadline: of everything, in `time.monotonic()`.
        start: the stage to begin with.
        ops: only smoke and speed of these.
    """

    def __init__(self, out: Path, deadline: float, start: str, ops: list[str] | None):
        self.out, self.deadline = out, deadline
        self.scratch = tempfile.TemporaryDirectory(prefix="pgdpo-gpu-")
        self.arguments = (str(out), self.scratch.name, ops)
        self.rows = Rows(out)
        self.done = {(row["stage"], row["case"]) for row in read(out) if row["status"] == "ok"}
        found = jobs(*self.arguments)
        begun = {*ALWAYS, *STAGES[STAGES.index(start) :]}
        self.jobs = [(i, job) for i, job in enumerate(found) if job.stage in begun]
        self.stage_ends: dict[str, float] = {}
        self.method = "fork"
        self.worker: Worker | None = None

    def run(self) -> None:
        try:
            self.describe()
            for index, job in self.jobs[1:]:
                if job.stage in ALWAYS or (job.stage, job.name) not in self.done:
                    self._one(index, job)
        finally:
            self._end_worker()
            self.scratch.cleanup()

    def _one(self, index: int, job: Job) -> None:
        emit = emitter(job, self.rows)
        if job.lacks:
            emit("left out", why=f"not installed: {', '.join(job.lacks)}")
            return
        left = self._left(job)
        if left < LEAST and job.stage not in ALWAYS:
            emit("left out", why="no time left")
            return
        why = self._hand_over(index, job, max(LEAST, min(job.seconds, left)))
        if why:
            emit("failed", why=why)

    def _left(self, job: Job) -> float:
        """Seconds for this job: its stage has its share of what was left when it began, if another can follow."""
        if job.stage == "end":
            return self.deadline - time.monotonic()
        if job.stage not in self.stage_ends:
            left = self.deadline - time.monotonic() - RESERVE
            later = STAGES[STAGES.index(job.stage) + 1 : -1]
            follows = any(other.stage in later and not other.lacks for _, other in self.jobs)
            self.stage_ends[job.stage] = time.monotonic() + left * (job.share if follows else 1.0)
        return self.stage_ends[job.stage] - time.monotonic()

    def describe(self) -> None:
        """The first job, without which no row can be read; by the way of starting processes that works here.

        Raises:
            ValueError: the device can't be used, or the folder holds rows of another.
        """
        index, job = 0, self.jobs[0][1]
        for self.method in ("fork", "spawn"):  # CUDA may not have a fork here
            why = self._hand_over(index, job, job.seconds)
            last = read(self.out)[-1:]
            if not why and last and last[0]["status"] == "ok":
                return
            self._end_worker()
        raise ValueError(why or last[0]["why"])

    def _hand_over(self, index: int, job: Job, seconds: float) -> str | None:
        if job.fresh:
            self._end_worker()
            driver().import_once(job.needs)
        if self.worker is None:
            self.worker = Worker(self.method, self.arguments)
        why = self.worker.run(index, seconds)
        if why or job.fresh or not self.worker.healthy:
            self._end_worker()
        return why

    def _end_worker(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None
