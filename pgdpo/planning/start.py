"""The check before a training run loads its weights: does the plan fit the GPU that it runs on?"""

from __future__ import annotations

import os

import torch

from pgdpo.config import Config
from pgdpo.diffusion.streams import Shapes
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.planning.advice import changes_that_fit, explain
from pgdpo.planning.cards import find_card
from pgdpo.planning.hardware import machine, this_gpu
from pgdpo.planning.plan import Planner


def check_memory(
    config: Config,
    shapes: list[Shapes],
    group_sizes: list[int],
    device: torch.device,
    world: int,
) -> None:
    """`shapes` (by stream), `group_sizes`: of each bucket. On a GPU, compare the plan with its memory; on a CPU do
    nothing.

    Raises InputError as `refuse_too_large`.
    """
    if device.type != "cuda":
        return
    memory = torch.cuda.get_device_properties(device).total_memory
    nodes = max(1, world // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    refuse_too_large(config, shapes, group_sizes, memory=memory, gpus=world, nodes=nodes)


def refuse_too_large(
    config: Config,
    shapes: list[Shapes],
    group_sizes: list[int] | None = None,
    *,
    memory: float,
    gpus: int,
    nodes: int,
) -> None:
    """Raises InputError, with what would make it fit, unless `train.check_memory` asks for a warning alone."""
    name, note = this_gpu(), ""
    if name is not None and find_card(name) is None:  # its memory is known all the same
        name, note = "H100", f"\ntimes are those of an H100: the rate of a {name} is not known"
    on = machine(gpus=gpus, nodes=nodes, name=name, memory_gb=memory / 1e9, mfu=0.35, disk_gb_per_s=1.0)
    planner = Planner(config, shapes, group_sizes)
    plan = planner.plan(config, on)
    if plan.fits:
        return
    text = explain(plan, changes_that_fit(planner, config, on)) + note
    if config.train.check_memory == "warn":
        say("", first=text)
        return
    raise InputError(
        f"{text}\nto start all the same (compiled blocks and fused ops need less): train.check_memory=warn"
    )
