"""How speed is measured: device events, variants in turn, inputs that no cache holds.

A benchmark file per op lists its `Case`s; this module times the variants of one.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .driver import CACHE, driver, empty_kernel

BATCH = 5  # rounds that are queued at once


class Round(NamedTuple):
    us: float  # of the device
    host_us: float  # until the call was queued, behind a device that sleeps: neither waits for the other


@dataclass(frozen=True)
class Case:
    """One op in one direction on one shape.

    `make(seed)` allocates inputs on the device; each variant is a function of such inputs that returns a closure to
    time, so that what it needs beforehand (a forward pass, for backward) stays outside the time.
    """

    op: str
    direction: str  # "forward" or "backward"
    shape: tuple[int, ...]
    dtype: torch.dtype
    moved: int | None  # bytes that the op cannot avoid to read and write; None for what is no op
    launches: int  # kernels of the fused variant
    make: Callable[[int], tuple]
    variants: dict[str, Callable[[tuple], Callable[[], object]]]
    form: str = ""  # of the modulation or the norm, where it isn't the op's first

    @property
    def tensor_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def name(self) -> str:
        return name_of(self.facts())

    def facts(self) -> dict:
        """What a row says of the case, whatever was measured."""
        return {
            "op": self.op,
            **({"form": self.form} if self.form else {}),
            "direction": self.direction,
            "shape": list(self.shape),
            "dtype": dtype_name(self.dtype),
            "tensor_bytes": self.tensor_bytes,
            "moved_bytes": self.moved,
            "launches": self.launches,
        }


def name_of(facts: dict) -> str:
    """A case's name, by what its row says of it."""
    form = f" {facts['form']}" if "form" in facts else ""
    shape = "x".join(map(str, facts["shape"]))
    return f"{facts['op']}{form} {facts['direction']} {shape} {facts['dtype']}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(
    case: Case, names: list[str], failed: Callable[[str, Exception], None], seconds: float = 60.0
) -> dict[str, list[Round]]:
    """Every round, by variant.

    Args:
        names: the variants to time against each other.
        failed: called with a variant and what it raised; the others go on without it.
        seconds: after which no further rounds begin, for a case that is slower than thought.
    """
    deadline = time.monotonic() + seconds
    torch._dynamo.reset()  # one compilation per case: its limit on recompilations is not what is measured
    inputs = make_inputs(case, len(names))
    calls, host = {}, {}
    for name in names:
        try:
            calls[name] = [case.variants[name](one) for one in inputs]
            for call in calls[name][:2]:  # the first compiles
                started = time.perf_counter()
                call()
                host[name] = time.perf_counter() - started
            driver().synchronize()
        except Exception as error:
            calls.pop(name, None)
            failed(name, error)
        if name not in calls:  # here the error's frames hold its tensors no longer
            driver().release_memory()
    host_seconds = sum(host[name] for name in calls)
    times = timed(calls, host_seconds=host_seconds, deadline=deadline)
    return {name: values for name, values in times.items() if values}


def make_inputs(case: Case, variants: int) -> list[tuple]:
    """Enough of them that a call never finds in the cache what an earlier call left there.

    Where as many as there are rounds are too small for that, each variant has its own, used once after a sweep.
    """
    moved = case.moved or CACHE
    copies = max(2, min(driver().rounds, -(-CACHE // moved)))
    if copies * moved < CACHE:
        copies *= variants
    return [case.make(seed) for seed in range(copies)]


def timed(
    calls: dict[str, list[Callable[[], object]]],
    *,
    host_seconds: float = 0.0,
    deadline: float = float("inf"),
) -> dict[str, list[Round]]:
    """Every round. The variants take turns at being first, and at the inputs.

    Args:
        calls: closures by variant, one for each of the rotating inputs.
        host_seconds: what queueing one round takes; the device waits for a whole batch of them.
        deadline: in `time.monotonic()`; no batch begins after it, but the first.
    """
    times = {name: [] for name in calls}
    names = list(calls)
    rounds = driver().rounds
    for start in range(0, rounds, BATCH):
        if start and time.monotonic() > deadline:
            break
        events = []
        driver().sweep_cache()
        driver().hold_queue(1.5 * BATCH * host_seconds)
        for turn in range(start, min(start + BATCH, rounds)):
            for place in range(len(names)):
                at = (place + turn) % len(names)
                rotating = calls[names[at]]
                offset = at * max(1, len(rotating) // len(names))
                before, after = driver().event(), driver().event()
                before.record()
                started = time.perf_counter()
                rotating[(offset + turn) % len(rotating)]()
                host = time.perf_counter() - started
                after.record()
                events.append((names[at], before, after, host))
        driver().synchronize()
        for name, before, after, host in events:
            times[name].append(Round(before.elapsed_time(after) * 1e3, host * 1e6))
    return times


def median_us(rounds: list[Round]) -> float:
    return statistics.median(one.us for one in rounds)


def copy_bandwidth(size: int = 1 << 30) -> float:
    """GB/s of a large device copy of random bytes, reads and writes counted: the roof.

    Random, because a GPU copies what compresses, or toggles few wires, faster than what a model holds.
    """
    if driver().stub:
        size = 1 << 20
    source = torch.randint(-(2**31), 2**31 - 1, (size // 4,), dtype=torch.int32, device=driver().name)
    target = torch.empty_like(source)
    target.copy_(source)
    us = median_us(timed({"copy": [lambda: target.copy_(source)]})["copy"])
    return 2 * size / us / 1e3


def empty_launch() -> float:
    """Microseconds between two events around a kernel that does nothing."""
    call = empty_kernel()
    call()
    return median_us(timed({"empty": [call]})["empty"])


def byte_table(cases: list[Case]) -> str:
    lines = [f"{'op':56} {'MB a tensor':>11} {'MB moved':>9} {'launches':>8}"]
    for case in cases:
        if case.moved:
            sizes = f"{case.tensor_bytes / 1e6:11.2f} {case.moved / 1e6:9.2f}"
            lines.append(f"{case.name:56} {sizes} {case.launches:8}")
    return "\n".join(lines)


@functools.cache
def compiled(function: Callable) -> Callable:
    """`torch.compile` for one shape; its saved tensors must survive the repeated backward of a benchmark."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    return torch.compile(function, fullgraph=True, dynamic=False, backend=driver().compile_backend)


def forward(function: Callable) -> Callable:
    """A variant that times the forward pass, with what it saves for backward."""
    return lambda inputs: lambda: function(*inputs)


def backward(function: Callable) -> Callable:
    """A variant that times the gradient by the first input of what the function returns first, a tuple."""

    def prepare(inputs):
        outputs = function(*inputs)[0]
        ones = [torch.ones_like(output) for output in outputs]
        return lambda: torch.autograd.grad(outputs, inputs[0], ones, retain_graph=True)

    return prepare
