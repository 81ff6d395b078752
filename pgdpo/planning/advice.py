"""What to change where a plan does not fit: every candidate is planned again, and the cheapest in time are named."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from pgdpo.config import Config
from pgdpo.messages.errors import InputError
from pgdpo.messages.units import size_text
from pgdpo.planning.hardware import Machine
from pgdpo.planning.plan import Plan, Planner

SHOWN = 3


@dataclass(frozen=True)
class Change:
    """Settings that make a configuration fit, and what they cost."""

    settings: dict[str, object]  # `section.key` -> value
    plan: Plan

    def overrides(self) -> str:
        """As they are typed behind a command."""
        return " ".join(f"{key}={str(value).lower()}" for key, value in self.settings.items())


def changes_that_fit(planner: Planner, config: Config, machine: Machine) -> list[Change]:
    """The three changes that make the plan fit at the least time a step: single ones, else two or three together."""
    found: list[Change] = []
    candidates = list(_candidates(config, machine))
    for together in (1, 2, 3):
        for parts in itertools.combinations(candidates, together):
            settings = {key: value for part in parts for key, value in part.items()}
            plan = _planned(planner, config, settings, machine)
            if plan is not None and plan.fits and not _needless(settings, plan, found):
                found.append(Change(settings, plan))
        if len(found) >= SHOWN:
            break
    return sorted(found, key=lambda change: change.plan.step.seconds)[:SHOWN]


def _needless(settings: dict[str, object], plan: Plan, found: list[Change]) -> bool:
    """A change that does more than one that fits already, or takes a key further, must at least be faster."""
    less = [change for change in found if change.settings.keys() <= settings.keys()]
    return any(plan.step.seconds > 0.99 * change.plan.step.seconds for change in less)


def _candidates(config: Config, machine: Machine) -> Iterator[dict[str, object]]:
    """Settings that trade time for memory and leave what is learned as it is, up to rounding.

    Of one key's values the least drastic comes first.
    """
    model, train = config.model, config.train
    kinds = ("none", "selective", "full")
    for kind in kinds[kinds.index(model.gradient_checkpointing) + 1 :]:
        yield {"model.gradient_checkpointing": kind}
    if config.reference_mode == "frozen" and model.adapter is not None:
        yield {"train.reference": "adapter"}
    if config.reference_mode in ("frozen", "adapter"):
        yield {"train.reference": "cached"}
    if train.group_batching == "joint":
        yield {"train.group_batching": "split"}
    if train.micro_batch_groups > 1:
        yield {"train.micro_batch_groups": 1}
    if not model.activation_offload:
        yield {"model.activation_offload": True}
    for stage in range(train.zero_stage + 1, 4):
        if machine.gpus > 1:
            yield {"train.zero_stage": stage}
    if train.offload_optimizer == "none":
        yield {"train.zero_stage": max(2, train.zero_stage), "train.offload_optimizer": "cpu"}
    if train.offload_parameters == "none":
        yield {"train.zero_stage": 3, "train.offload_parameters": "cpu"}
        yield {"train.zero_stage": 3, "train.offload_optimizer": "cpu", "train.offload_parameters": "cpu"}
    for degree in (2, 4, 8):
        if degree > train.sequence_parallel and degree <= machine.per_node:
            yield {"train.sequence_parallel": degree}


def _planned(planner: Planner, config: Config, settings: dict[str, object], machine: Machine) -> Plan | None:
    """The plan with the settings changed; None where they contradict each other or the batch does not split."""
    values = config.model_dump()
    for key, value in settings.items():
        section, name = key.split(".")
        values[section][name] = value
    try:
        return planner.plan(Config.of(values).model_validate(values), machine)
    except (ValidationError, InputError):
        return None


def explain(plan: Plan, changes: list[Change]) -> str:
    """By how much a plan exceeds the memory, and what would make it fit."""
    peak, usable = plan.memory.peak, plan.machine.usable
    lines = [
        f"the plan needs {size_text(peak)} on each GPU, {size_text(peak - usable)} more than the {size_text(usable)} "
        f"that can be used of {size_text(plan.machine.memory)}"
    ]
    if not changes:
        lines.append(
            "no change of how the model is held makes it fit: take more GPUs, fewer frames or a smaller size"
        )
    else:
        lines.append("what makes it fit, cheapest in time first:")
    for change in changes:
        slower = change.plan.step.seconds / plan.step.seconds - 1
        lines.append(
            f"  {change.overrides()}  ({size_text(change.plan.memory.peak)}, {slower:+.0%} time a step)"
        )
    return "\n".join(lines)
