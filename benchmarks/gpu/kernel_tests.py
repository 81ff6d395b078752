"""tests/kernels on the device, in parallel. This module is also the pytest plugin that writes each outcome at once."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from .driver import VARIABLE, driver
from .rows import Rows

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "PGDPO_BENCH_ROWS"
JOB = "tests/kernels"  # the row of all of them; the others are a test each
DRY_TESTS = ["tests/kernels/test_packaging.py"]  # a dry run is for the way, not for the tests
# Machine code, wheels, lists of names, the compiler's limits: what a CPU shows as well, and minutes of a GPU's time.
NO_GPU_NEEDED = (
    "tests/kernels/examples",
    "tests/kernels/ops/test_bytes.py",
    "tests/kernels/ops/test_known_models.py",
    "tests/kernels/test_aot.py",
    "tests/kernels/test_install.py",
    "tests/kernels/test_kernel_hub.py",
    "tests/kernels/test_packaging.py",
    "tests/kernels/test_predict.py",
    "tests/kernels/test_benchmarks.py::test_pytest_benchmark_compiles_more_shapes_than_torch_keeps",
)
WORKERS = 12  # at most: each has a context of its own on the device, and compiles kernels


def run(out: str, emit) -> None:
    command = [sys.executable, "-m", "pytest", *(DRY_TESTS if driver().stub else [JOB])]
    command += ["-q", "--tb=line", "-p", "no:cacheprovider", "-p", __name__]
    for test in () if driver().stub else NO_GPU_NEEDED:
        command += ["--deselect", test]
        Rows(Path(out)).add("tests", test, "left out", why="needs no GPU")
    workers = 1
    if importlib.util.find_spec("xdist"):
        workers = 2 if driver().stub else min(WORKERS, os.cpu_count() or 1)
        command += ["-n", str(workers), "--dist", "worksteal"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    # The tests ask for a device themselves, and are no part of a pytest that this may run in.
    inherited = {name: os.environ[name] for name in os.environ if name != VARIABLE and "PYTEST" not in name}
    environment = {**inherited, FOLDER: out, "PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        code = process.wait()
    finally:
        process.kill()
    if code:
        emit("failed", why=f"pytest ended with {code}", workers=workers)
    else:
        emit("ok", workers=workers)


@functools.cache
def _rows() -> Rows | None:
    """None in a worker of pytest-xdist: it reports to the process that started it."""
    return None if "PYTEST_XDIST_WORKER" in os.environ else Rows(Path(os.environ[FOLDER]))


def pytest_runtest_logreport(report) -> None:
    if report.when == "call" or not report.passed:
        _add(report, seconds=round(report.duration, 2))


def pytest_collectreport(report) -> None:
    if not report.passed:
        _add(report)


def _add(report, **data: object) -> None:
    if (rows := _rows()) is None:
        return
    if report.passed:
        rows.add("tests", report.nodeid, "ok", **data)
        return
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    why = text.strip().splitlines()[-1][:400] if text.strip() else report.outcome
    rows.add("tests", report.nodeid, "left out" if report.skipped else "failed", why=why, **data)
