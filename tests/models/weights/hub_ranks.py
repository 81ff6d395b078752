"""Ranks of two nodes that start with a model of the hub; each node has a cache of its own."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from pgdpo.engine.engine import start_distributed
from pgdpo.engine.zero.load import load_sharded
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.families.wan import WanSettings
from pgdpo.models.weights.hub import commit_of, download_first
from tests.models.weights.fake_hub import REPOSITORY, asked_of

NODE = 2  # ranks of a node
DEEPSPEED = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


def start(endpoint: str, caches: list[str], revision: str | None = None) -> dict:
    """What a rank took, or was refused."""
    node, os.environ["LOCAL_RANK"] = (
        divmod(int(os.environ["RANK"]), NODE)[0],
        str(int(os.environ["RANK"]) % NODE),
    )
    model = WanSettings(path=REPOSITORY, encoders="toy", revision=revision)
    asked = []

    def parts() -> list[str]:
        asked.append(dist.is_initialized())
        return ["transformer"]

    with asked_of(endpoint, caches[node]):
        try:
            device = start_distributed(lambda store: download_first(model, parts, store))
        except InputError as error:
            return {"refused": str(error)}
        family = open_family(model)
        sharded = load_sharded(family, dtype=torch.float32, device=device, deepspeed_config=DEEPSPEED)
        return {"commit": commit_of(model), "asked": asked, "tensors": len(list(sharded.parameters()))}
