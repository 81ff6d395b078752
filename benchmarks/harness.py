"""How speed is measured: device events, interleaved variants, inputs that rotate past the cache.

A benchmark file per op lists its `Case`s; this module measures one of them into a `Row`.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ROUNDS = 30
CACHE = 256 << 20  # rotating inputs hold at least this many bytes, several times any GPU's L2


@dataclass(frozen=True)
class Case:
    """One op in one direction on one shape.

    `make(seed)` allocates inputs on the GPU; each variant is a function of such inputs that returns a closure to
    time, so that what it needs beforehand (a forward pass, for backward) stays outside the time.
    """

    op: str
    direction: str  # "forward" or "backward"
    shape: tuple[int, ...]
    dtype: torch.dtype
    moved: int  # bytes that the op cannot avoid to read and write
    launches: int  # kernels of the fused variant
    make: Callable[[int], tuple]
    variants: dict[str, Callable[[tuple], Callable[[], object]]]

    @property
    def tensor_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.op} {self.direction} {'x'.join(map(str, self.shape))} {dtype}"


@dataclass
class Row:
    """What was measured, as it is written to JSON. Times are medians in microseconds."""

    op: str
    direction: str
    shape: list[int]
    dtype: str
    tensor_bytes: int
    moved_bytes: int
    launches: int
    us: dict[str, float] = field(default_factory=dict)
    gb_per_s: dict[str, float] = field(default_factory=dict)
    share_of_copy: float | None = None
    times_eager: float | None = None  # how many times as fast as eager
    times_compile: float | None = None
    empty_launches: float | None = None  # fused time in empty launches per kernel
    failed: dict[str, str] = field(default_factory=dict)


def measure(case: Case, copy_gb_per_s: float, empty_us: float) -> Row:
    row = Row(
        case.op,
        case.direction,
        list(case.shape),
        str(case.dtype).removeprefix("torch."),
        case.tensor_bytes,
        case.moved,
        case.launches,
    )
    torch._dynamo.reset()  # one compilation per case: its limit on recompilations is not what is measured
    copies = max(2, min(16, -(-CACHE // case.moved)))
    inputs = [case.make(seed) for seed in range(copies)]
    calls = {}
    for name, prepare in case.variants.items():
        try:
            calls[name] = [prepare(one) for one in inputs]
            for call in calls[name]:
                call()
        except torch.cuda.OutOfMemoryError as error:
            calls.pop(name, None)
            row.failed[name] = str(error).splitlines()[0]
    torch.cuda.synchronize()
    times = timed(calls)
    row.us = {name: statistics.median(values) for name, values in times.items()}
    row.gb_per_s = {name: case.moved / us / 1e3 for name, us in row.us.items()}
    fused = row.us["fused"]
    row.share_of_copy = row.gb_per_s["fused"] / copy_gb_per_s
    row.times_eager = row.us["eager"] / fused if "eager" in row.us else None
    row.times_compile = row.us["compile"] / fused if "compile" in row.us else None
    row.empty_launches = fused / (empty_us * case.launches)
    return row


def timed(calls: dict[str, list[Callable[[], object]]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Microseconds of every round, variants in turn. The queue is filled behind a sleep: no host time counts."""
    times = {name: [] for name in calls}
    for start in range(0, rounds, 5):
        events = []
        torch.cuda._sleep(60_000_000)
        for turn in range(start, min(start + 5, rounds)):
            for name, rotating in calls.items():
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                before.record()
                rotating[turn % len(rotating)]()
                after.record()
                events.append((name, before, after))
        torch.cuda.synchronize()
        for name, before, after in events:
            times[name].append(before.elapsed_time(after) * 1e3)
    return times


def copy_bandwidth(size: int = 1 << 30) -> float:
    """GB/s of a large device copy, reads and writes counted: the roof."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    us = statistics.median(timed({"copy": [lambda: target.copy_(source)]})["copy"])
    return 2 * size / us / 1e3


def empty_launch() -> float:
    """Microseconds between two events around a kernel that does nothing."""
    import triton

    @triton.jit
    def nothing(x):
        pass

    x = torch.empty(1, device="cuda")
    nothing[(1,)](x)
    return statistics.median(timed({"empty": [lambda: nothing[(1,)](x)]})["empty"])


def table(rows: list[Row]) -> str:
    head = f"{'op':44} {'MB':>8} {'moved MB':>8} {'fused us':>9} {'GB/s':>6} {'of copy':>7} "
    head += f"{'x eager':>7} {'x compile':>9} {'launches':>8}"
    lines = [head]
    for row in rows:
        name = f"{row.op} {row.direction} {'x'.join(map(str, row.shape))} {row.dtype}"
        ratios = [f"{value:.2f}" if value else "-" for value in (row.times_eager, row.times_compile)]
        lines.append(
            f"{name:44} {row.tensor_bytes / 1e6:8.2f} {row.moved_bytes / 1e6:8.2f} {row.us['fused']:9.1f} "
            f"{row.gb_per_s['fused']:6.0f} {row.share_of_copy:7.1%} {ratios[0]:>7} {ratios[1]:>9} "
            f"{row.empty_launches:8.2f}"
        )
    return "\n".join(lines)


def byte_table(cases: list[Case]) -> str:
    lines = [f"{'op':56} {'MB a tensor':>11} {'MB moved':>9} {'launches':>8}"]
    for case in cases:
        lines.append(
            f"{case.name:56} {case.tensor_bytes / 1e6:11.2f} {case.moved / 1e6:9.2f} {case.launches:8}"
        )
    return "\n".join(lines)


@functools.cache
def compiled(function: Callable) -> Callable:
    """`torch.compile` for one shape; its saved tensors must survive the repeated backward of a benchmark."""
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    return torch.compile(function, fullgraph=True, dynamic=False)


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
