"""The way of one program through its machine code: what it executes, from which argument it loads, where it waits."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .machine_code import Instruction, Source

# Where a kernel's arguments begin in constant bank 0.
ARGUMENTS = {"sm_80": 0x160, "sm_89": 0x160, "sm_90": 0x210, "sm_100": 0x380, "sm_120": 0x380}
FROM_BANK = re.compile(r"c\[0x0\]\[0x([0-9a-f]+)\]")
ADDRESS = re.compile(r"\[(U?R\d+)(?:\.\w+)?(?:\+|\])")


@dataclass(frozen=True)
class Path:
    """The instructions of a program in order; those of `loop` are repeated."""

    steps: tuple[Instruction, ...]
    loop: range  # places in `steps`; empty where nothing is repeated

    def places(self, turns: int) -> Iterator[int]:
        """The places of all that is executed, with the loop that many times."""
        before, after = range(self.loop.start), range(self.loop.stop, len(self.steps))
        return itertools.chain(before, *[self.loop] * turns, after)

    def in_a_turn(self, *opcodes: str) -> int:
        """How many of them (without names: of all) a turn has; without a loop, the whole way."""
        turn = self.steps[self.loop.start : self.loop.stop] if self.loop else self.steps
        return sum(not opcodes or step.opcode in opcodes for step in turn)


def ways(code: list[Instruction]) -> list[Path]:
    """The paths that programs take: two where some go a whole way of their own, as for q and for k."""
    first, second = walk(code, aside=False), walk(code, aside=True)
    return [first] if first == second else [first, second]


def walk(code: list[Instruction], aside: bool) -> Path:
    """From the entry to an exit. A jump back is the end of a loop: the longest one counts.

    A guarded jump ahead is not taken, unless it skips a call and nothing else of weight, a division's slow way for
    numbers that never come, or (`aside`) a whole way to its exit.
    """
    place = {one.address: at for at, one in enumerate(code)}
    steps: list[Instruction] = []
    passed: dict[int, int] = {}  # address -> place in steps
    loop, at = range(0), 0
    while at < len(code):
        one = code[at]
        passed[one.address] = len(steps)
        steps.append(one)
        if one.ends:
            break
        at += 1
        if one.jump in passed:
            loop = max(loop, range(passed[one.jump], len(steps)), key=len)
        elif one.jump in place:
            skipped = code[at : place[one.jump]]
            opcodes = {other.opcode for other in skipped}
            slow = "CALL" in opcodes and not opcodes & {"LDG", "STG", "BAR"}
            if not one.guarded or (aside if any(other.ends for other in skipped) else slow):
                at = place[one.jump]
    return Path(tuple(steps), loop)


def accesses(path: Path, source: Source, target: str) -> dict[int, frozenset[str]]:
    """Of each global load and store, by its place, the arguments that its address was computed from."""
    pointers = argument_places(source, target)
    origin: dict[str, frozenset[str]] = {}
    found = {}
    for place, step in enumerate(path.steps):
        given = [origin.get(register, frozenset()) for register in step.reads]
        given += [
            frozenset({pointers[int(offset, 16)]})
            for offset in FROM_BANK.findall(step.operands)
            if int(offset, 16) in pointers
        ]
        from_here = frozenset().union(*given)
        if step.opcode in ("LDG", "STG"):
            address = ADDRESS.findall(step.operands)[-1]
            found[place], from_here = origin.get(address, frozenset()), frozenset()
        for register in step.writes:
            origin[register] = from_here
    return found


def argument_places(source: Source, target: str) -> dict[int, str]:
    """The offsets of pointers in the constant bank."""
    at, found = ARGUMENTS[target], {}
    for name in source.kernel.arg_names:
        if (kind := source.types.get(name)) is None:
            continue
        size = 8 if kind[0] == "*" or kind in ("i64", "fp64") else 4
        at = -(-at // size) * size
        if kind[0] == "*":
            found[at] = name
        at += size
    return found


# Cycles until an instruction's result can be read, where nothing stands before it: NVIDIA's, as others measured them.
RESULT_AFTER = {"SHFL": 24, "LDS": 30, "MUFU": 24, "S2R": 25, "S2UR": 25, "LDC": 30, "LDCU": 30, "ULDC": 12}
RESULT_AFTER |= {"I2F": 14, "F2I": 14}
ARITHMETIC = 4.5


@dataclass(frozen=True)
class Timeline:
    cycles: float  # of one program that has a multiprocessor to itself
    load_phases: int  # waits for loads of more than half of the shortest latency
    in_flight: int  # bytes a thread, asked for before a wait, at most


def timeline(path: Path, turns: int, threads: int, latency: dict[int, float], barrier: float) -> Timeline:
    """In order, one instruction a cycle on each of four schedulers; a wait where a result isn't there yet.

    Args:
        latency: cycles of each global load, by its place.
        barrier: cycles of a barrier.
    """
    issue = max(1.0, threads / 128)
    short = min(latency.values(), default=0.0) / 2
    now, asked, most, phases = 0.0, 0, 0, 0
    ready: dict[str, float] = {}
    loading: set[str] = set()
    for place in path.places(turns):
        step = path.steps[place]
        for register in sorted(step.reads | step.writes):  # a set's order changes from run to run
            if (wait := ready.get(register, 0.0) - now) > 0:
                now += wait
                if register in loading and wait > short:
                    phases, asked = phases + 1, 0
        now += issue
        after = RESULT_AFTER.get(step.opcode, ARITHMETIC)
        if step.opcode == "BAR":
            now += barrier
        elif step.opcode == "LDG":
            after, asked = latency[place], asked + step.bytes
            most = max(most, asked)
        for register in step.writes:
            ready[register] = now + after
        (loading.update if step.opcode == "LDG" else loading.difference_update)(step.writes)
    return Timeline(now, phases, most)
