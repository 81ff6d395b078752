"""What is run on a GPU, in order: the most telling first, as time may end."""

from __future__ import annotations

import functools
import importlib.util
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pgdpo_kernels import set_backend

from ..ops import (
    exactness,
    shapes,
    test_diffusion_dpo,
    test_group_errors,
    test_hidden_forms,
    test_hidden_ops,
    test_noise_pair,
    test_pair_errors,
    test_wan_step,
)
from ..report import machine
from . import harness, kernel_tests, rows, smoke, train_step
from .driver import driver
from .rows import STAGES

STEP_PACKAGES = ("diffusers", "transformers", "peft", "deepspeed", "av", "pydantic", "yaml", "typer")

ON_LATENTS = (
    test_pair_errors,
    test_group_errors,
    test_diffusion_dpo,
    test_noise_pair,
)

Emit = Callable[..., dict]  # emit(status, **data), for a row of the job that runs


@dataclass(frozen=True)
class Job:
    """What is begun, limited and left out as one."""

    stage: str
    name: str
    run: Callable[[Emit], None]
    seconds: float  # after which it is ended
    needs: tuple[str, ...] = ()  # packages
    fresh: bool = False  # in a process of its own, for its memory and what it does to the libraries
    share: float = 1.0  # of the time that is left, for its whole stage where others follow

    @property
    def lacks(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def jobs(out: str, scratch: str, ops: list[str] | None = None) -> list[Job]:
    """All of them, in order.

    Args:
        out: the folder of the rows.
        scratch: a folder for what jobs hand to one another.
        ops: only smoke and speed of these ops.

    Raises:
        ValueError: an unknown op.
    """
    check_ops(ops)
    found = [
        Job("machine", "machine", functools.partial(describe, out), 60.0),
        Job("machine", "roof", roof, 60.0),
    ]
    found += [
        Job("smoke", f"{op} B={batch}", functools.partial(smoke_job, op, batch), 60.0)
        for op in smoke.OPS
        for batch in smoke.BATCHES
        if not ops or op in ops
    ]
    found += [speed_job(*one) for one in speed_cases() if not ops or one[1].op in ops]
    if not ops:
        found.append(
            # Fresh: what pytest started ends with it, and nothing runs beside the timings.
            Job(
                "tests",
                kernel_tests.JOB,
                functools.partial(kernel_tests.run, out),
                240.0,
                fresh=True,
                share=0.4,
            )
        )
        found += [
            Job("exactness", backend, functools.partial(exactness_job, backend), 60.0)
            for backend in ("eager", "triton")
        ]
        steps = {"world": functools.partial(train_step.make_worlds, scratch)}
        steps |= {
            name: functools.partial(train_step.run_variant, name, scratch) for name in train_step.VARIANTS
        }
        found += [
            Job("steps", f"step {name}", run, 200.0, STEP_PACKAGES, fresh=True) for name, run in steps.items()
        ]
    found.append(Job("end", "roof", roof, 20.0))
    return sorted(found, key=lambda job: STAGES.index(job.stage))  # stable: keeps the order in a stage


def check_ops(ops: list[str] | None) -> None:
    if unknown := sorted(set(ops or ()) - set(smoke.OPS)):
        raise ValueError(f"unknown ops {unknown}; known: {', '.join(sorted(smoke.OPS))}")


def speed_cases() -> list[tuple[str, harness.Case, list[str]]]:
    """(stage, case, variants): each op against eager and Liger-Kernel first, widest first; against `torch.compile` once
    all that is known."""
    hidden, pairs = hidden_cases(driver().stub), pair_cases(driver().stub)
    out = [("wide", case, ["fused", "eager", *({"liger"} & set(case.variants))]) for case in hidden]
    out += [("pairs", case, ["fused", "eager"]) for case in pairs]
    out += [("compile", case, ["fused", "compile"]) for case in widest_of_each(hidden + pairs)]
    block = test_wan_step.cases(tiny=driver().stub)
    return out + [("block", case, ["fused", "eager", "compile"]) for case in block]


def widest_of_each(cases: list[harness.Case]) -> list[harness.Case]:
    """The widest case of every op, form and direction, then the next: where time ends early, each op has a figure."""
    seen: Counter = Counter()
    ranks = []
    for case in cases:
        key = case.op, case.form, case.direction
        ranks.append(seen[key])
        seen[key] += 1
    return [case for _, case in sorted(zip(ranks, cases, strict=True), key=lambda both: both[0])]


def hidden_cases(tiny: bool) -> list[harness.Case]:
    """The ops as most models have them, the widest first; then their other forms."""
    found = test_hidden_ops.cases(test_hidden_ops.TINY if tiny else test_hidden_ops.MODELS)
    return sorted(found, key=lambda case: -case.tensor_bytes) + test_hidden_forms.cases(tiny)


def pair_cases(tiny: bool) -> list[harness.Case]:
    found = [case for module in ON_LATENTS for case in module.cases(shapes.TINY if tiny else shapes.SHAPES)]
    return sorted(found, key=lambda case: -case.tensor_bytes)


def speed_job(stage: str, case: harness.Case, variants: list[str]) -> Job:
    seconds = {"compile": 60.0, "block": 120.0}.get(stage, 30.0)
    needs = ("diffusers", "peft") if stage == "block" else ()
    share = 0.5 if stage == "compile" else 1.0  # more cases than any time is enough for
    return Job(
        stage, case.name, functools.partial(speed, case, variants, seconds), seconds, needs, share=share
    )


def describe(out: str, emit: Emit) -> None:
    """Where the rows that follow were measured.

    Raises:
        ValueError: the folder holds rows of another machine, other versions or other kernels.
    """
    here = machine() | {"stub": driver().stub}
    for row in rows.read(Path(out)):
        for name in ("device", "torch", "triton", "kernels_tree", "stub"):
            if "machine" in row and (there := row["machine"].get(name)) != here[name]:
                raise ValueError(
                    f"{out} holds rows of {name} {there}, here it is {here[name]}: give another --out"
                )
    torch.ones(1, device=driver().name)
    emit("ok", machine=here)


def roof(emit: Emit) -> None:
    """What rows are relative to, at the start and at the end: a GPU gets warm."""
    copy, empty = harness.copy_bandwidth(), None
    try:
        empty = harness.empty_launch()
    except Exception as error:  # no reason to lose the copy
        emit("failed", variant="empty launch", why=describe_error(error))
    emit("ok", copy_gb_per_s=copy, empty_launch_us=empty)


def smoke_job(op: str, batch: int, emit: Emit) -> None:
    found = {}
    for dtype in (torch.bfloat16,) if driver().stub else (torch.float32, torch.bfloat16):
        found[harness.dtype_name(dtype)] = smoke.check(op, batch, dtype)
    emit("ok", found=found)


def exactness_job(backend: str, emit: Emit) -> None:
    sizes = exactness.TINY if driver().stub else exactness.ON_A_GPU
    found = exactness.figures(backend, driver().name, *sizes)
    missed = exactness.failures(found)
    emit("failed" if missed else "ok", why=", ".join(missed), figures=found)


def speed(case: harness.Case, variants: list[str], seconds: float, emit: Emit) -> None:
    """One row for what was measured, one for each variant that raised."""

    def failed(variant: str, error: Exception) -> None:
        emit("failed", variant=variant, why=describe_error(error))

    with set_backend("triton"):  # or what is called fused could be eager; the others ask no backend
        times = harness.measure(case, variants, failed, seconds / 2)
    driver().release_memory()
    if times:
        us = {name: harness.median_us(values) for name, values in times.items()}
        host = {name: statistics.median(one.host_us for one in values) for name, values in times.items()}
        least = {name: min(one.us for one in values) for name, values in times.items()}
        rounds = {name: len(values) for name, values in times.items()}
        emit("ok", **case.facts(), us=us, host_us=host, least_us=least, rounds=rounds)


def describe_error(error: BaseException) -> str:
    """Its type and first lines."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"


def print_bytes(ops: list[str] | None) -> None:
    """What each op must move: all that can be said without a GPU.

    Raises:
        ValueError: an unknown op.
    """
    check_ops(ops)
    found = [*hidden_cases(tiny=False), *pair_cases(tiny=False)]
    print(harness.byte_table([case for case in found if not ops or case.op in ops]))
    print("\nNo GPU here: these are the bytes that each op must move. No speed was measured.")
