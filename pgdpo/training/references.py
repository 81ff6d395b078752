"""The reference that a configuration asks for, built beside its policy."""

from __future__ import annotations

from pathlib import Path

import torch

from pgdpo.checkpoints.identity import base_identity, told_rounded
from pgdpo.config import Config, ModelConfig
from pgdpo.data.prepared import PreparedPairs, pair_hash
from pgdpo.engine import engine as engines
from pgdpo.engine.attention import with_attention
from pgdpo.engine.group_batching import Joint, batched
from pgdpo.engine.parallel import Ranks
from pgdpo.engine.policy import base_dtype, build_policy
from pgdpo.models.adapters.lora_file import init_digest
from pgdpo.models.family import Family
from pgdpo.objectives import Objective
from pgdpo.ranks import agreement
from pgdpo.reference import CachedErrors, Forward, Live, Reference, adapter_off
from pgdpo.reference.moving import Moving, reference_adapter, second_copy
from pgdpo.reference.store import joined, open_rows
from pgdpo.training.opening import compares_ends


def build_reference(config: Config, policy: Joint, objective: Objective, *, group_size: int = 2) -> Reference:
    """A reference that is run: adapter off (or the one that the policy's started from), frozen or moving; none where
    the objective needs none. `group_size`: samples of the largest group."""
    if not objective.needs_reference:
        return Reference()
    mode, family, transformer = config.reference_mode, policy.family, policy.engine.module
    if mode == "adapter":
        at_init = config.model.adapter.reference_starts_at_init
        forward = reference_adapter(transformer, policy)[0] if at_init else adapter_off(transformer, policy)
        return Live(_attending(forward, transformer, family, config))
    if mode == "frozen":
        return Live(frozen_copy(config, family, policy.ranks, group_size)[0])
    if config.model.adapter is not None:
        forward, followed = reference_adapter(transformer, policy)
        forward = _attending(forward, transformer, family, config)
    else:
        forward, copy = frozen_copy(config, family, policy.ranks, group_size)
        followed = second_copy(transformer, copy)
    share, every = {
        "ema": (config.train.reference_ema_alpha, 1),
        "synced": (1.0, config.train.reference_sync_every),
    }[mode]
    return Moving(forward, followed, share=share, every=every)


def frozen_copy(
    config: Config, family: Family, ranks: Ranks, group_size: int = 2
) -> tuple[Forward, torch.nn.Module]:
    """(forward of the weights that the policy starts from, their model); partitioned like the policy's under ZeRO-3.

    It takes the policy's path: the same dtypes, attention backend and fused ops; an adapter only where the reference
    is the LoRA that the policy's starts from.
    """
    adapter = config.model.adapter
    at_init = adapter is not None and adapter.reference_starts_at_init
    _, transformer = build_policy(config, ranks.device, adapter=at_init, ranks=ranks)
    frozen = engines.build_frozen(transformer, config)
    forward = batched(family, frozen, config.train, group_size)
    return _attending(forward, transformer, family, config), transformer


def _attending(forward: Forward, transformer: torch.nn.Module, family: Family, config: Config) -> Forward:
    """`forward` with the reference's own attention backend, where it has one."""
    name = config.model.reference_attention
    return forward if name is None else with_attention(forward, transformer, family, name)


def open_cached(config: Config, family: Family, data: PreparedPairs, device: torch.device) -> CachedErrors:
    """The errors that `pgdpo reference` left for this configuration, each file read by one rank. Raises InputError for
    others' or missing ones."""
    key = agreement.on_main(lambda: errors_key(config, family, data))
    parts = agreement.shared(lambda rank, ranks: open_rows(reference_folder(config), key, rank, ranks))
    pair_ids = [pair_hash(row["id"]) for row in data.rows]
    return CachedErrors(joined(parts), pair_ids=pair_ids, draws=config.train.cached_draws, device=device)


def reference_folder(config: Config) -> Path:
    """Where `pgdpo reference` writes, a folder per key: beside the prepared data, whose errors they are."""
    return config.prepared_dir.parent / "reference"


# Keys that every family had once, empty in most: the errors of then stay known by them. Later ones count where set.
EVERY_FAMILYS = ("task", "expert", "guidance", "frame_rate")


def errors_key(config: Config, family: Family, data: PreparedPairs) -> dict:
    """All that the reference's errors depend on, under the names of the configuration's keys."""
    # of the policy alone, or not what is computed
    apart = {"adapter", "other_adapter", "path", "revision", "transformer"}
    apart |= {"gradient_checkpointing", "activation_offload", "vae_tiling"}
    adapter, lora = config.model.adapter, {}
    if adapter is not None and adapter.reference_starts_at_init:
        # How it is held decides how its update is rounded.
        held = adapter.model_dump(mode="json", exclude={"init", "reference"})
        lora = {"reference LoRA": {"file": init_digest(adapter), **held}}
    zero = config.train.deepspeed.get("zero_optimization", {})
    if config.train.zero_stage == 3 and zero.get("zero_quantized_weights"):
        lora["reference weights' gathers"] = "quantized"
    model = config.model.model_dump(mode="json", exclude=apart)
    settings = {
        name: value for name, value in model.items() if value is not None or name in ModelConfig.model_fields
    }
    model = dict.fromkeys(EVERY_FAMILYS) | settings
    diffusion = config.diffusion.model_dump(mode="json", exclude={"inversion_steps"})
    return {
        "reference weights": base_identity(config, family),
        **told_rounded(config),
        # Pairs that are computed alone have their text trimmed (`draw_sample`), which rounds otherwise.
        **({"text": "trimmed"} if family.masks_text and config.train.micro_batch_groups == 1 else {}),
        **lora,
        **({"samples": "best and worst"} if data.kind == "group" and compares_ends(config) else {}),
        "reference dtype": str(base_dtype(config)),
        "prepared data": data.files_fingerprint,
        "data.caption_dropout": config.data.caption_dropout,
        "train.precision": config.train.precision,
        "train.seed": config.train.seed,
        **{f"model.{name}": value for name, value in model.items()},
        **{f"diffusion.{name}": value for name, value in diffusion.items()},
    }
