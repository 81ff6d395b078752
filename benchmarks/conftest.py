"""pytest-benchmark on device events. Without a GPU every benchmark is skipped: a CPU's time says nothing here."""

import itertools

import pytest
import torch

from .harness import Case


def pytest_report_header() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU: no speed is measured; `python -m benchmarks.suite` prints the bytes that each op must move"
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
            self.origin = torch.cuda.Event(enable_timing=True)
            self.origin.record()
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return self.origin.elapsed_time(now) / 1e3


def run(benchmark, case: Case, variant: str) -> None:
    calls = itertools.cycle([case.variants[variant](case.make(seed)) for seed in range(2)])
    benchmark._timer = DeviceTimer()
    benchmark.group = case.name
    benchmark.extra_info |= {"moved_bytes": case.moved, "variant": variant}
    benchmark.pedantic(lambda: next(calls)(), rounds=20, iterations=10, warmup_rounds=2)
