"""What measuring asks of a device: events, a queue to fill, caches to sweep. A GPU, or its stub on a CPU.

The stub lets the whole flow run where there is no GPU. Its host clock around the interpreter measures nothing of a
kernel: whatever was taken with it says `"stub": true`.
"""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable

import torch

VARIABLE = "PGDPO_BENCH_DRIVER"  # cuda or stub
CACHE = 256 << 20  # bytes: several times any GPU's L2


class Cuda:
    """The GPU that torch sees."""

    name = "cuda"
    stub = False
    compile_backend = "inductor"
    rounds = 30
    sleep_cycles = 2_000_000_000  # a second at most: what a batch of calls may take to be queued

    @functools.cached_property
    def _cache(self) -> torch.Tensor:
        return torch.zeros(CACHE // 4, dtype=torch.int32, device="cuda")

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def hold_queue(self, seconds: float) -> None:
        """Let the device sleep while the host queues calls, so that no host time counts: 30 ms at least."""
        torch.cuda._sleep(int(min(max(seconds, 0.03) * 2e9, self.sleep_cycles)))

    def sweep_cache(self) -> None:
        """Read more than the cache holds. A read leaves no dirty lines, whose write-back a timed call would pay."""
        self._cache.max()

    def release_memory(self) -> None:
        torch.cuda.empty_cache()

    def import_once(self, packages: tuple[str, ...]) -> None:
        """Nothing: what a package does when it is imported may ask CUDA, and then no process can be forked."""


class Stub:
    """A CPU in a GPU's place, for tests and dry runs."""

    name = "cpu"
    stub = True
    rounds = 2
    compile_backend = "aot_eager"  # the code generator is not what a dry run is for

    def __init__(self) -> None:
        from tests.interpreter import speed_up_interpreter

        speed_up_interpreter()

    class Event:
        def record(self) -> None:
            self.seconds = time.perf_counter()

        def elapsed_time(self, later: Stub.Event) -> float:
            return (later.seconds - self.seconds) * 1e3

    def event(self) -> Stub.Event:
        return self.Event()

    def synchronize(self) -> None:
        pass

    def hold_queue(self, seconds: float) -> None:
        pass

    def sweep_cache(self) -> None:
        pass

    def release_memory(self) -> None:
        pass

    def import_once(self, packages: tuple[str, ...]) -> None:
        """In the process that forks: the processes of steps take most of a dry run to import them."""
        for package in packages:
            importlib.import_module(package)


@functools.cache
def driver() -> Cuda | Stub:
    """Of this process: as the environment says, since a process that forks others may not ask CUDA; else by asking."""
    chosen = os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else "stub")
    return {"cuda": Cuda, "stub": Stub}[chosen]()


def empty_kernel() -> Callable[[], object]:
    """A launch of a kernel that does nothing."""
    import triton

    @triton.jit
    def nothing(x):
        pass

    x = torch.empty(1, device=driver().name)
    return lambda: nothing[(1,)](x)
