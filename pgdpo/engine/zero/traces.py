"""One of ZeRO-3's traces for each kind of forward, so that weights are gathered ahead of their use.

DeepSpeed writes down which modules run from one forward of the model to the next, backward included, and gathers ahead
by the last such trace while it holds; a module that it did not expect makes it drop the trace and begin anew. The
reference's forward through the policy's weights passes other modules than the policy's (no LoRA, or another) and has no
backward, so that neither would ever find the trace of the other.
"""

from __future__ import annotations

import copy
import inspect

import deepspeed
import torch
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from peft.tuners.tuners_utils import BaseTunerLayer

Kind = tuple[bool, tuple[str, ...]]  # whether a backward follows, the adapters that run


def keep_traces_apart(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let each kind of forward of a ZeRO-3 engine record and find a trace of its own. Losses stay as they are.

    The traces share what is in flight and what a backward has open; whether a weight is there, the weight itself says.
    """
    offload = engine.optimizer.parameter_offload
    unused = offload.param_coordinator
    adapted = next((m for m in engine.module.modules() if isinstance(m, BaseTunerLayer)), None)
    by_kind: dict[Kind, PartitionedParameterCoordinator] = {}

    def choose(*_: object) -> None:
        kind = _kind(adapted)
        if kind not in by_kind:
            # The first forward of a kind can show DeepSpeed more weights that a module reads (peft's layers those of
            # their LoRA), which whole traces of other kinds would then lack.
            outdated = [other for other, coordinator in by_kind.items() if coordinator.is_complete_trace()]
            by_kind.update({each: _without_trace(unused) for each in (*outdated, kind)})
        offload.param_coordinator = by_kind[kind]

    # Before DeepSpeed's own hook, which begins a forward's trace.
    engine.module.register_forward_pre_hook(choose, prepend=True)


def let_go(engine: deepspeed.DeepSpeedEngine) -> None:
    """End the last engine of a process that goes on, so that weights and optimizer are freed with it.

    DeepSpeed's hooks hold them, and under ZeRO-3 a stack of models and a cache of all that ran in the process.
    """
    engine.destroy()
    FWD_MODULE_STACK.clear()
    release = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(release).nonlocals["func"].cache_clear()  # behind DeepSpeed's NVTX range


def _kind(adapted: BaseTunerLayer | None) -> Kind:
    """`adapted`: any of the model's layers with adapters; they are switched together."""
    on = adapted is not None and not adapted.disable_adapters
    return torch.is_grad_enabled(), tuple(adapted.active_adapters) if on else ()


def _without_trace(unused: PartitionedParameterCoordinator) -> PartitionedParameterCoordinator:
    coordinator = copy.copy(unused)
    coordinator._clear_trace_structures()
    return coordinator
