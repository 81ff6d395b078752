"""Run by test_zero_init on two ranks: the most bytes that a rank holds while it loads a model in either way."""

import torch

from pgdpo.config import Config
from pgdpo.engine.engine import build_frozen, deepspeed_config, start_distributed
from pgdpo.engine.zero.load import load_sharded
from pgdpo.models import open_family
from pgdpo.models.families.wan import WanSettings
from tests.live_bytes import LiveBytes


def peaks(source: str) -> dict[str, int]:
    device = start_distributed()
    model = WanSettings(family="wan", path=source, encoders="toy")
    train = {"zero_stage": 3, "precision": "fp32", "global_batch_groups": 2}
    config = Config(
        output_dir=source, data={"train": "toy"}, model=model, objective={"name": "dpo"}, train=train
    )
    family = open_family(model)
    with LiveBytes() as ordinary:
        whole = family.load_transformer(dtype=torch.float32)
    size = sum(p.numel() * p.element_size() for p in whole.parameters())
    del whole
    with LiveBytes() as sharded:
        transformer = load_sharded(
            family, dtype=torch.float32, device=device, deepspeed_config=deepspeed_config(config.train)
        )
    held = sharded.now
    with LiveBytes() as frozen:  # what DeepSpeed adds when it takes the sharded reference
        build_frozen(transformer, config)
    torch.distributed.barrier()  # the rank that leaves first would break the connections that the other still makes
    return {
        "whole": size,
        "ordinary": ordinary.peak,
        "sharded": sharded.peak,
        "held": held,
        "frozen": frozen.peak,
    }
