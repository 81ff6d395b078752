"""Two ranks of the real DeepSpeed engine on tiny models: bytes that each rank really holds, by part.

Parts are counted after the backward pass (gradients) and after the optimizer's step (weights, optimizer), by distinct
storage.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from pgdpo.config.read import load_config
from pgdpo.engine import engine as engines
from pgdpo.engine.parallel import arrange_ranks
from pgdpo.engine.policy import build_policy


def nbytes(tensors) -> int:
    """Bytes of the distinct storages of tensors."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t is not None}
    return sum(storages.values())


def weights(engine) -> int:
    parameters = list(engine.module.parameters())
    shards = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    return nbytes([p.data for p in parameters if p.data.numel() or not shards] + shards)


def optimizer_bytes(engine) -> int:
    optimizer = engine.optimizer
    masters = [
        *getattr(optimizer, "single_partition_of_fp32_groups", []),
        *getattr(optimizer, "fp32_partitioned_groups_flat", []),
    ]
    inner = getattr(optimizer, "optimizer", optimizer)
    moments = [state[name] for state in inner.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return nbytes([*masters, *moments])


def gradients(engine) -> int:
    optimizer = engine.optimizer
    found = [p.grad for p in engine.module.parameters()]
    for group in getattr(optimizer, "averaged_gradients", {}).values():
        found += group if group is not None else []
    flat = getattr(optimizer, "grad_partitions_flat_buffer", None)
    return nbytes([*found, flat])


def measure(path: str, overrides: list[str]) -> dict:
    config = load_config(path, overrides)
    device = engines.start_distributed()
    family, transformer = build_policy(config, device, ranks=arrange_ranks(1, device))
    engine = engines.build_engine(transformer, config, group_size=2)
    shape = family.latent_shape(config.data.num_frames, config.data.height, config.data.width)
    torch.manual_seed(dist.get_rank())
    conditioning = {
        name: torch.randn(value.shape) for name, value in family.example_conditioning(2, shape).items()
    }
    for _ in range(engine.gradient_accumulation_steps()):  # the last turn is what stays in `found`
        prediction = family.predict(engine, torch.randn(2, *shape), torch.tensor([0.3, 0.6]), conditioning)
        engine.backward(prediction.float().square().mean())
        found = gradients(engine)
        engines.step(engine)
    out = {"weights": weights(engine), "gradients": found, "optimizer": optimizer_bytes(engine)}
    engine.destroy()
    return out


def measure_all(cases: list[tuple[str, list[str]]]) -> list[dict]:
    """What this rank holds in each case, a (config file, overrides)."""
    return [measure(path, overrides) for path, overrides in cases]
