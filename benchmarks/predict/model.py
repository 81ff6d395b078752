"""How long a launch takes, predicted from its machine code: a few constants, and the slowest of what has to happen.

A program alone has its timeline: instructions in order, waits for loads, barriers (`path.timeline`). A multiprocessor
holds several programs, by registers, threads and shared memory. It turns one out after the time that the slowest of
these takes, or a little more where two are about equal:

    its bytes, at the multiprocessor's share of the memory's bandwidth
    its instructions, on four schedulers
    what it loads and stores, through the cache
    its timeline, over the programs that are there at once

`python -m benchmarks.predict.calibrate` fits the constants and says how far off they are: benchmarks/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .launches import Launch
from .machine_code import TARGETS, Source, build, instructions, usage
from .path import Path, accesses, timeline, ways

# Fitted: benchmarks/results/h100-20261126/tuning.jsonl.
MEMORY_NS = 600.0  # a load that no cache holds
CACHE_NS = 180.0  # a load that the L2 holds
BARRIER = 65.0  # cycles, with what the warps of a program wait for each other
START = 300.0  # cycles between a program's end and the next one's first instruction
ROOF = 1.03  # of a copy's bandwidth, where reads and writes overlap best
SHARPNESS = 4.0  # how little two limits add up: the root of the sum of these powers
# Measured: an empty launch between two events, and each further kernel in the queue.
LAUNCH_US, NEXT_LAUNCH_US = 3.0, 2.0
# The hardware's.
CLOCK = 1.755  # GHz
CACHE_BYTES = 64  # a cycle, between the L2 and a multiprocessor
REGISTERS, WARPS, PROGRAMS, SHARED = 65536, 64, 32, 227 << 10  # of a multiprocessor


@dataclass(frozen=True)
class Device:
    copy_gb_per_s: float  # as measured (H100), or of its data sheet in the same proportion (H200)
    processors: int


DEVICES = {"H100": Device(3009.0, 132), "H200": Device(4300.0, 132)}


def constants() -> dict[str, float]:
    return {name: value for name, value in globals().items() if name.isupper() and isinstance(value, float)}


@dataclass(frozen=True)
class Facts:
    """What the machine code of one launch says, whatever device runs it."""

    kernel: str
    threads: int
    programs: int
    registers: int
    spill: int
    shared: int
    resident: int  # programs of a multiprocessor at once
    turns: int  # of the loop over rows or blocks
    barriers: int  # of a turn
    instructions: int  # of a turn
    load_phases: int  # of a program with one turn: waits for loads that nothing hides
    bytes_in_flight: int  # of a multiprocessor, at most


@dataclass(frozen=True)
class Demand:
    """What a program asks of a multiprocessor."""

    memory_bytes: float
    cache_bytes: float
    issue_cycles: float
    cycles: float  # alone


class Compiled(NamedTuple):
    registers: int
    spill: int
    shared: int
    paths: list[Path]


_compiled: dict[tuple, Compiled] = {}


def compiled(source: Source, target: str) -> Compiled:
    """Once each: many cases of a benchmark differ in numbers of rows alone, which are no part of a kernel."""
    key = (target, *sorted(source.aligned), *(str(vars(source)[name]) for name in KEYS))
    if key not in _compiled:
        found = build(source, target)
        paths = ways(instructions(found)) if TARGETS[target][0] == "cuda" else []
        _compiled[key] = Compiled(*usage(found, target), found.metadata.shared, paths)
    return _compiled[key]


KEYS = ("kernel", "types", "constants", "threads", "fp_fusion", "cuda_registers")


def read(launch: Launch, target: str) -> tuple[Facts, Demand]:
    """What a launch's machine code for a CUDA target says, and what its programs ask of a multiprocessor."""
    source = launch.source
    registers, spill, shared, paths = compiled(source, target)
    path, programs = paths[0], launch.programs / len(paths)
    touched = [accesses(one, source, target) for one in paths]
    turns = turns_of(path, touched[0], launch.sizes, programs * source.threads)
    moved: dict[str, float] = {}  # by all programs, by argument
    for one, found in zip(paths, touched, strict=True):
        for place, names in found.items():
            size = one.steps[place].bytes * (turns if place in one.loop else 1) * source.threads * programs
            for name in names:
                moved[name] = moved.get(name, 0.0) + size
    # A load misses the cache as often as its tensor is smaller than all that is loaded of it.
    missed = {name: min(1.0, launch.sizes[name] / size) for name, size in moved.items()}
    latency = {
        place: CLOCK * (CACHE_NS + (MEMORY_NS - CACHE_NS) * min((missed[one] for one in names), default=1.0))
        for place, names in touched[0].items()
    }
    alone = timeline(path, turns, source.threads, latency, BARRIER)
    executed = list(path.places(turns))
    resident = resident_programs(registers, source.threads, shared)
    facts = Facts(
        kernel=source.kernel.__name__,
        threads=source.threads,
        programs=launch.programs,
        registers=registers,
        spill=spill,
        shared=shared,
        resident=resident,
        turns=turns,
        barriers=path.in_a_turn("BAR"),
        instructions=path.in_a_turn(),
        load_phases=timeline(path, 1, source.threads, latency, BARRIER).load_phases,
        bytes_in_flight=alone.in_flight * source.threads * resident,
    )
    demand = Demand(
        memory_bytes=sum(missed[name] * size for name, size in moved.items()) / launch.programs,
        cache_bytes=sum(path.steps[place].bytes for place in executed if place in touched[0])
        * source.threads,
        issue_cycles=len(executed) * source.threads / 128,
        cycles=alone.cycles,
    )
    return facts, demand


def on_target(launch: Launch, target: str) -> dict[str, int]:
    """What `Facts` says of a target alone; nobody reads the instructions of one that isn't CUDA's."""
    names = ["registers", "spill", "shared"]
    found: Compiled | Facts = compiled(launch.source, target)
    if TARGETS[target][0] == "cuda":
        names += ["resident", "barriers", "instructions", "load_phases", "bytes_in_flight"]
        found, _ = read(launch, target)
    return {name: getattr(found, name) for name in names}


def turns_of(path: Path, touched: dict[int, frozenset[str]], sizes: dict[str, int], threads: float) -> int:
    """How often the loop must repeat for all programs together to pass over their tensors once."""
    in_a_turn: dict[str, int] = {}
    for place in path.loop:
        for name in touched.get(place, ()):
            in_a_turn[name] = in_a_turn.get(name, 0) + path.steps[place].bytes
    return max([1, *(round(sizes[name] / size / threads) for name, size in in_a_turn.items())])


def resident_programs(registers: int, threads: int, shared: int) -> int:
    """Registers are given to warps in 256, and each of the four schedulers has a quarter of them."""
    warps = threads // 32
    of_a_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // 4 // of_a_warp * 4 // warps
    return max(1, min(by_registers, WARPS // warps, PROGRAMS, SHARED // (shared + 1024)))


def launch_us(facts: Facts, demand: Demand, device: Device) -> float:
    """Microseconds of a launch on an idle device, without what it takes to launch it."""
    bandwidth = ROOF * device.copy_gb_per_s / device.processors / CLOCK  # bytes a cycle and multiprocessor
    cache = demand.cache_bytes / CACHE_BYTES
    there = min(facts.resident, max(1, -(-facts.programs // device.processors)))
    limits = (
        demand.memory_bytes / bandwidth,
        demand.issue_cycles,
        cache,
        (demand.cycles + START + cache) / there,
    )
    each = sum(limit**SHARPNESS for limit in limits) ** (1 / SHARPNESS)
    # Filling and emptying the device takes one program's time.
    return (facts.programs / device.processors * each + demand.cycles) / CLOCK / 1e3


def op_us(launches: list[tuple[Facts, Demand]], small: int, device: Device) -> float:
    """Microseconds of an op, between two events: its launches and PyTorch's small ones in a queue."""
    others = (len(launches) - 1 + small) * NEXT_LAUNCH_US
    return LAUNCH_US + others + sum(launch_us(facts, demand, device) for facts, demand in launches)
