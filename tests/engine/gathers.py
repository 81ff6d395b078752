"""Run on ranks by test_matrix.py and `benchmarks.runs.zero3_trace`: commands, and what ZeRO-3 gathered in each."""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from unittest import mock

from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.partitioned_param_coordinator import (
    PartitionedParameterCoordinator as Coordinator,
)

from pgdpo.engine import engine
from tests.worlds import run_pgdpo


def count(commands: dict[str, list[str]], without: Mapping[str, str] = {}) -> dict[str, dict]:
    """Name -> counts of a command of pgdpo.

    That is how many `forwards` of sharded models began with DeepSpeed's trace (`found`), how many uses of `modules`
    went `by_trace`, and bytes `gathered` by dtype. `without`: name -> a function of `engine/engine.py` that does
    nothing meanwhile.
    """
    return {name: _count(words, without.get(name)) for name, words in commands.items()}


def _count(words: list[str], without: str | None) -> dict:
    seen, gathered = Counter(), Counter()
    reset, fetch = Coordinator.reset_step, Coordinator.fetch_sub_module
    gather = partition_parameters._dist_allgather_fn

    def begin_forward(coordinator):
        reset(coordinator)
        seen.update(forwards=1, found=int(coordinator.is_complete_trace()))

    def use_module(coordinator, module, forward):
        seen.update(modules=1, by_trace=int(coordinator.is_complete_trace()))
        return fetch(coordinator, module, forward)

    def gather_counted(part, whole, group=None):
        gathered[str(whole.dtype).removeprefix("torch.")] += whole.nbytes
        return gather(part, whole, group)

    with (
        mock.patch.object(engine, without, lambda *given: None) if without else nullcontext(),
        mock.patch.multiple(Coordinator, reset_step=begin_forward, fetch_sub_module=use_module),
        mock.patch.object(partition_parameters, "_dist_allgather_fn", gather_counted),
    ):
        run_pgdpo(*words)
    return {**seen, "gathered": dict(gathered)}
