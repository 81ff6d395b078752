"""One micro-batch's loss on both roads: `TRITON_INTERPRET=1 python -m benchmarks.runs.loss_roads`.

It writes results/loss_roads.json. `in one op` is `Objective.from_predictions`; `errors first` is `Compared.errors`,
then the objective: forward and backward by the predictions, 4 pairs in bf16, as the training step calls them.

Counted: launches of our kernels, and the operators of PyTorch that compute something, each a launch or more on a GPU
(views and allocations are left out). Timed: what calling it all takes of one CPU thread with our kernels' launches left
out, the roads in turn, medians. PyTorch's operators do compute here, on a few numbers a pair: it is the time of a CPU,
and nothing of it is a kernel's. That both roads have the same bits is asked of Triton's interpreter.
"""

from __future__ import annotations

import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.objectives import Compared, Objective, PairInfo, build_objective
from pgdpo.reference.cached import compared_with, frame_sums
from pgdpo.training.metrics import watch_gradients
from pgdpo_kernels import launch as door
from pgdpo_kernels import library, set_backend
from pgdpo_kernels.pairs import pair_launch, preference

from ..report import RESULTS

PAIRS, ROUNDS, CALLS = 4, 60, 20
SHAPE = (2 * PAIRS, 16, 4, 8, 8)
SEGMENTS = [0, 0, 1, 1]
CASES = {
    "dpo": {},
    "ipo": {},
    "pg_dpo": {},
    "pg_dpo, switch": {"ipr_form": "switch"},
    "pg_dpo, labelled segments, weights": {"segments": "labelled"},
    "pg_dpo, cached reference": {},
}


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        found[case] = figures(case)
        print(case, json.dumps(found[case]))
    about = {
        "machine": machine(),
        "versions": versions(),
        "pairs": PAIRS,
        "rounds": ROUNDS,
        "calls a round": CALLS,
    }
    file = RESULTS / "loss_roads.json"
    file.write_text(json.dumps({**about, "cases": found}, indent=1) + "\n", encoding="utf-8")


def inputs(case: str) -> tuple[Callable[[torch.Tensor], Compared], torch.Tensor, PairInfo]:
    """What compares a prediction, a prediction, and the pairs' own fields."""
    generator = torch.Generator().manual_seed(0)
    target, reference, step = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    pred = (reference + 0.05 * step).bfloat16()
    target, reference = target.bfloat16(), reference.bfloat16()
    if "cached" in case:
        known = compared_with(frame_sums(reference, target), pred, target)
        return lambda pred: Compared(pred, target, known.against), pred, PairInfo()
    if "labelled" not in case:
        return lambda pred: Compared(pred, target, {"ref_pred": reference}), pred, PairInfo()
    labels = torch.tensor([[1.0, -1.0], [1.0, 1.0], [0.0, 1.0], [-1.0, -1.0]])
    weight, omega = torch.rand(2, PAIRS, generator=generator)
    pairs = PairInfo(weight=weight, timestep_weight=omega, segment_labels=labels)
    return lambda pred: Compared(pred, target, {"ref_pred": reference}, SEGMENTS), pred, pairs


def figures(case: str) -> dict:
    compare, pred, pairs = inputs(case)
    objective = build_objective(case.split(",")[0], beta=500.0, **CASES[case])

    def loss(road: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = pred.detach().requires_grad_()
        found = road(objective, compare(leaf), pairs)
        found.backward()
        return found.detach(), leaf.grad

    calls = {name: functools.partial(loss, road) for name, road in ROADS.items()}
    with set_backend("triton"):
        results = [call() for call in calls.values()]
        counts = {name: counted(call) for name, call in calls.items()}
        with launches_as(lambda *given, **constants: None):
            times = medians(calls)
    one, two = times.values()
    return {
        **{name: {**counts[name], "host microseconds": round(times[name], 1)} for name in ROADS},
        "host time, ratio": round(one / two, 3),
        "equal bits": all(torch.equal(one, two) for one, two in zip(*results, strict=True)),
    }


def in_one_op(objective: Objective, compared: Compared, pairs: PairInfo) -> torch.Tensor:
    output, errors = objective.from_predictions(compared, pairs)
    watch_gradients(errors)
    return output.loss


def errors_first(objective: Objective, compared: Compared, pairs: PairInfo) -> torch.Tensor:
    errors = compared.errors(cross=objective.needs_cross)
    output = objective(errors, pairs)
    watch_gradients(errors)
    return output.loss


ROADS = {"in one op": in_one_op, "errors first": errors_first}


class Operators(TorchDispatchMode):
    """Counts what computes: no view, no allocation, none of our own ops, whose kernels are counted instead."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        view = any(each.alias_info is not None for each in function._schema.returns)
        apart = (
            function.namespace == library.ops.name
            or "empty" in function.name()
            or function is torch.ops.aten.detach.default
        )
        self.count += not (view or apart)
        return function(*args, **(kwargs or {}))


def counted(call: Callable[[], object]) -> dict[str, int]:
    launches = []

    def launch(kernel, *given, **constants) -> None:
        launches.append(kernel.__name__)
        door.launch(kernel, *given, **constants)

    with launches_as(launch), Operators() as operators:
        call()
    return {"kernel launches": len(launches), "operators": operators.count}


@contextmanager
def launches_as(launch: Callable) -> Iterator[None]:
    """Another function in place of the door that every kernel of the pairs goes through."""
    with mock.patch.object(pair_launch, "launch", launch), mock.patch.object(preference, "launch", launch):
        yield


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of this thread a call, in turn, each round another one first."""
    taken = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    for turn in range(ROUNDS):
        for name in sorted(calls, reverse=turn % 2):
            started = time.thread_time_ns()
            for _ in range(CALLS):
                calls[name]()
            taken[name].append((time.thread_time_ns() - started) / CALLS / 1000)
    gc.enable()
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
