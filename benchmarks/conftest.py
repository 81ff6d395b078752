"""pytest-benchmark on device events. Without a GPU every benchmark is skipped: a CPU's time says nothing here."""

import itertools

import pytest
import torch

from .gpu.driver import driver
from .gpu.harness import Case, make_inputs


def pytest_report_header() -> str | None:
    if not torch.cuda.is_available():
        return (
            "no GPU: no speed is measured; `python -m benchmarks.gpu` prints the bytes that each op must move"
        )
    return f"device: {torch.cuda.get_device_name()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "benchmark" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason="no GPU: no speed is measured"))


class DeviceTimer:
    """Seconds on the device's own clock."""

    def __init__(self):
        self.origin = None

    def __call__(self) -> float:
        if self.origin is None:
            self.origin = driver().event()
            self.origin.record()
        now = driver().event()
        now.record()
        driver().synchronize()
        return self.origin.elapsed_time(now) / 1e3


def run(benchmark, case: Case, variant: str) -> None:
    torch._dynamo.reset()  # torch.compile takes eight shapes of one function, and there are more
    calls = itertools.cycle([case.variants[variant](inputs) for inputs in make_inputs(case, 1)])
    benchmark._timer = DeviceTimer()
    benchmark.group = case.name
    benchmark.extra_info |= {"moved_bytes": case.moved, "variant": variant}
    benchmark.pedantic(lambda: next(calls)(), rounds=20, iterations=10, warmup_rounds=2)
