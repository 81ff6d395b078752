"""Weights and AdamW's moments as whole named tensors, whatever the ZeRO stage and the number of ranks.

DeepSpeed's own checkpoints are pickles laid out for one stage and one world size. Read and set through its
`safe_get_full_*` and `safe_set_full_*`, the same numbers are plain tensors that any stage and world size takes back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

from pgdpo.messages.progress import moved
from pgdpo.models.adapters.adapter import NAME

MOMENTS = ("exp_avg", "exp_avg_sq")


def trained_parameters(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.nn.Parameter]:
    """Trained parameters by the name they are stored under: peft's (`...to_q.lora_A.weight`) for an adapter's."""
    return {
        name.replace(f".{NAME}.", "."): parameter
        for name, parameter in engine.module.named_parameters()
        if parameter.requires_grad
    }


def state_bytes(engine: deepspeed.DeepSpeedEngine) -> int:
    """Bytes of weights and moments in fp32."""
    sizes = (getattr(p, "ds_numel", p.numel()) for p in trained_parameters(engine).values())
    return 4 * (1 + len(MOMENTS)) * sum(sizes)


def weights(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, fp32 tensor) of what trains, and of the module's buffers where all of it does; whole on every rank.

    All ranks must go through it together: each tensor is gathered when it is asked for.
    """
    plain = engine.zero_optimization_stage() == 0
    for name, parameter in trained_parameters(engine).items():
        yield name, parameter.detach() if plain else safe_get_full_fp32_param(parameter)
    if not getattr(engine.module, "peft_config", None):
        kept = engine.module.state_dict().keys()
        yield from ((name, buffer) for name, buffer in engine.module.named_buffers() if name in kept)


def moments(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, torch.Tensor]]:
    """(`exp_avg/<name>`, ...), whole on every rank, and `step/<name>`, the number of updates; as `weights` does.

    A parameter that AdamW never updated has none.
    """
    for name, parameter in trained_parameters(engine).items():
        state = _plain_state(engine, parameter)
        if state is None:
            continue
        for moment in MOMENTS:
            plain = engine.zero_optimization_stage() == 0
            whole = state[moment] if plain else safe_get_full_optimizer_state(parameter, moment)
            yield f"{moment}/{name}", whole
        yield f"step/{name}", torch.as_tensor(state["step"], dtype=torch.float32)


def _plain_state(engine: deepspeed.DeepSpeedEngine, parameter: torch.nn.Parameter) -> dict | None:
    """AdamW's state of a parameter, or of the first flat group where ZeRO holds all of them in such groups."""
    if engine.zero_optimization_stage() == 0:
        return engine.optimizer.state.get(parameter) or None
    return next((state for state in engine.optimizer.optimizer.state.values() if state), None)


@torch.no_grad()
def restore(
    engine: deepspeed.DeepSpeedEngine,
    stored_weights: Mapping[str, torch.Tensor],
    stored_moments: Mapping[str, torch.Tensor],
) -> None:
    """Put whole tensors back, all ranks together, asking for each once and in the same order.

    Raises KeyError where a weight is not stored.
    """
    stage = engine.zero_optimization_stage()
    parameters = trained_parameters(engine)
    updates = {name: float(stored_moments[name]) for name in stored_moments if name.startswith("step/")}
    if stage:
        _make_flat_state(engine, max(updates.values(), default=0.0))
    for name, parameter in parameters.items():
        moved(f"loading {name}")
        weight = stored_weights[name].to(parameter.device)
        if not stage:
            parameter.copy_(weight)
            if f"step/{name}" in updates:
                engine.optimizer.state[parameter] = _state(parameter, updates[f"step/{name}"])
        else:
            safe_set_full_fp32_param(parameter, weight)
        for moment in MOMENTS if f"step/{name}" in updates else ():
            value = stored_moments[f"{moment}/{name}"].to(parameter.device)
            if stage:
                safe_set_full_optimizer_state(parameter, value, moment)
            else:
                engine.optimizer.state[parameter][moment].copy_(value)
    for name, buffer in engine.module.named_buffers():
        if name in stored_weights:
            buffer.copy_(stored_weights[name])
    if stage == 3:
        _each_stage3_group(engine.optimizer, lambda group: None)
    elif stage:
        engine.optimizer.update_lp_params()


def _state(parameter: torch.Tensor, updates: float) -> dict[str, torch.Tensor]:
    """What torch's AdamW makes at its first step; a fused one counts on the device."""
    count = torch.tensor(updates, device=parameter.device if parameter.is_cuda else "cpu")
    return {"step": count, **{moment: torch.zeros_like(parameter) for moment in MOMENTS}}


def _make_flat_state(engine: deepspeed.DeepSpeedEngine, updates: float) -> None:
    """AdamW's state for ZeRO's flat partitions, which DeepSpeed makes at its first step only."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        for flat in zero.single_partition_of_fp32_groups:
            zero.optimizer.state[flat] = _state(flat.detach(), updates)
        zero._lazy_init_hp_params_optimizer_state()
        return

    def make(group: int) -> None:
        flat = zero.fp32_partitioned_groups_flat[group]
        zero.optimizer.state[flat] = _state(flat.detach(), updates)

    _each_stage3_group(zero, make)


def _each_stage3_group(zero, change: Callable[[int], None]) -> None:
    """Visit ZeRO-3's groups as its step does: swapped in, changed, copied to the parameters, swapped out."""
    zero._partition_all_parameters()  # what is whole now would not be gathered anew
    for group in range(len(zero.fp16_groups)):
        swapped = zero._swappable_optimizer_subgroup(group)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(group)
        change(group)
        zero._reassign_or_swap_out_partitioned_parameters(group)
        if swapped:
            zero._optimizer_states_and_gradient_swap_out(group)
    zero.invalidate_secondary_tensor()  # a node's own shards, with zero_hpz_partition_size, are of before
    if zero.persistent_parameters:  # small ones that every rank holds whole
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
