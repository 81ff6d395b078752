"""The policy of a configuration: its weights, its adapter and what is put into it, in an engine where it trains."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

import torch

from pgdpo.config import AdapterConfig, Config, ModelConfig
from pgdpo.engine.attention import check_attention, choose_attention
from pgdpo.engine.blocks import tell_of_blocks
from pgdpo.engine.deterministic import Deterministic
from pgdpo.engine.engine import (
    build_engine,
    check_deepspeed,
    deepspeed_config,
    forward_config,
    start_distributed,
)
from pgdpo.engine.group_batching import Joint, Split
from pgdpo.engine.memory import check_selective, save_memory, with_activation_offload
from pgdpo.engine.parallel import Ranks, arrange_ranks
from pgdpo.engine.silent import run_all_streams
from pgdpo.engine.ulysses import share_tokens
from pgdpo.engine.zero.load import gather_in_forward, load_sharded
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError, MachineError
from pgdpo.messages.progress import moved
from pgdpo.models import open_family
from pgdpo.models.adapters.adapter import add_adapter, add_reference_adapter, start_from
from pgdpo.models.adapters.lora_file import Update, open_lora
from pgdpo.models.adapters.targets import check_targets
from pgdpo.models.family import Family
from pgdpo.models.weights import hub
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.objectives import needs_of
from pgdpo_kernels import apply_to


def build_policy(
    config: Config,
    device: torch.device,
    *,
    adapter: bool = True,
    init: bool = True,
    ranks: Ranks | None = None,
    forward_only: bool = False,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> tuple[Family, torch.nn.Module]:
    """(model family, transformer on `device` with its adapter, which starts from `model.adapter.init`).

    `adapter` off: the weights alone, as a reference that runs beside the policy wants them. `init` off: the adapter is
    the identity, for weights that come from elsewhere.
    `ranks`: those that train together; under ZeRO-3 each holds its shard alone, with sequence parallelism they share
    a clip's tokens. None: this process holds and computes all.
    `forward_only`: to sample from, in eval mode. All is held in the dtype that it computes in, and sharded weights are
    gathered module by module, so that fused ops, which read those of other modules, are then left out.
    `weights`: whole tensors under the transformer's names, in the place of the model's own.
    """
    family = open_family(config.model)
    check_attention(config, family, device)
    check_selective(config.model)
    check_kernels(config.model, family, device)
    lora = config.model.adapter if adapter else None
    updates = open_adapter(family, lora) if lora is not None and init else {}
    sharded = ranks is not None and config.train.zero_stage == 3
    transformer = _load(config, family, device, sharded=sharded, forward_only=forward_only, weights=weights)
    if lora is not None:
        add_adapter(transformer, lora, config.train.seed)
        if updates:
            start_from(transformer, updates, lora)
    choose_attention(transformer, family, config.model.attention)
    if not (sharded and forward_only) and (fused := fuse(transformer, config.model.kernels, device)):
        say(f"fused ops in {len(fused)} modules of the transformer")
    if family.repeated_blocks:
        transformer._repeated_blocks = list(family.repeated_blocks)
    save_memory(transformer, config.model)
    tell_of_blocks(transformer)
    if ranks is not None:
        share_tokens(transformer, family.sharing, ranks.sequence_group)
        if len(family.streams) > 1 and ranks.data_size > 1:  # ranks may have clips with sound and without
            run_all_streams(transformer, family.sharing)
    return family, transformer.train(not forward_only)


def _load(
    config: Config,
    family: Family,
    device: torch.device,
    *,
    sharded: bool,
    forward_only: bool,
    weights: Mapping[str, torch.Tensor] | None,
) -> torch.nn.Module:
    """The transformer without adapter, as `build_policy` has it."""
    options = {
        "dtype": compute_dtype(config) if forward_only else base_dtype(config),
        "random_init_seed": config.train.seed if config.model.random_init else None,
    }
    if not sharded:
        transformer = family.load_transformer(**options)
        if weights is not None:
            put_weights(transformer, weights)
        return transformer.to(device)
    shared = forward_config() if forward_only else deepspeed_config(config.train)
    transformer = load_sharded(family, device=device, deepspeed_config=shared, weights=weights, **options)
    if forward_only:
        gather_in_forward(transformer)
    return transformer


def open_policy(config: Config, family: Family, ranks: Ranks, *, group_size: int = 2) -> Joint:
    """The policy as it trains: its transformer, with room for what the reference holds in it, in DeepSpeed's engine.

    `group_size`: samples of the largest group that it is asked about.
    """
    _, transformer = build_policy(config, ranks.device, ranks=ranks)
    _make_room(transformer, config)
    engine = build_engine(transformer, config, group_size=group_size)
    forward = with_activation_offload(engine, ranks.device) if config.model.activation_offload else engine
    if config.train.group_batching == "split":
        return Split(engine, forward, family, ranks, train=config.train, group_size=group_size)
    if config.train.deterministic:
        return Deterministic(engine, forward, family, ranks, max_norm=config.train.max_grad_norm)
    return Joint(engine, forward, family, ranks)


def _make_room(transformer: torch.nn.Module, config: Config) -> None:
    """Add to the policy, before DeepSpeed takes it, the second adapter of a reference that moves or is a LoRA."""
    adapter, mode = config.model.adapter, config.reference_mode
    if adapter is None or not needs_of(config.objective["name"], **config.objective_options).reference:
        return
    if mode in ("ema", "synced") or (mode == "adapter" and adapter.reference_starts_at_init):
        add_reference_adapter(transformer, identity=not adapter.reference_starts_at_init)


@torch.no_grad()
def put_weights(transformer: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into the transformer's own, one by one, in the dtypes that these have."""
    for name, tensor in transformer.state_dict().items():
        tensor.copy_(weights[name])
        moved(f"loading {name}")


def open_ranks(config: Config, *, clips: bool) -> Ranks:
    """Join the ranks that hold one model together, once its weights are on every node; `clips` as `start_ranks`.

    Raises InputError for numbers of ranks, and for keys of DeepSpeed's, that do not fit.
    """
    ranks = arrange_ranks(config.train.sequence_parallel, start_ranks(config, clips=clips))
    check_deepspeed(config.train)
    return ranks


def start_ranks(config: Config, *, clips: bool) -> torch.device:
    """`start_distributed`, once the weights that a run of this configuration loads are on every node.

    `clips`: it shows some, too.
    """
    parts = functools.partial(needed_weights, config, clips=clips)
    return start_distributed(functools.partial(hub.download_first, config.model, parts))


def needed_weights(config: Config, *, clips: bool) -> list[str]:
    """The parts of the pipeline whose weights are loaded; `clips` as `start_ranks` takes it."""
    family = open_family(config.model)
    parts = (
        [family.transformer_folder] if family.start_folder is None and not config.model.random_init else []
    )
    if clips or config.expert == "both":
        parts += [family.experts.other_folder] if family.experts is not None else []
    if clips:
        parts += ["vae"] if config.model.encoders == "pipeline" else []
    return parts


def open_adapter(family: Family, adapter: AdapterConfig) -> dict[str, Update]:
    """What the adapter starts from, by layer; empty where it starts as the identity. Loads no weights.

    Raises InputError for targets that the model has not, and as `open_lora` does.
    """
    check_targets(family, adapter)
    return {} if adapter.init is None else open_lora(family, adapter)


def base_dtype(config: Config) -> torch.dtype:
    """bf16 with an adapter: the frozen weights are held in bf16; without one all weights stay fp32 (they train)."""
    return compute_dtype(config) if config.model.adapter is not None else torch.float32


def fuse(transformer: torch.nn.Module, kernels: str, device: torch.device) -> list[str]:
    """Put the fused ops into the transformer, as `model.kernels` asks. Returns what was replaced.

    Raises InputError for a model that they are not written for, MachineError where Triton cannot run.
    """
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    if kernels == "eager" or (kernels == "auto" and not runs):
        return []
    if not runs:
        raise MachineError(
            f"model.kernels is `triton`: Triton needs a GPU, this is {device.type}; use `auto` or `eager`"
        )
    try:
        return apply_to(transformer, strict=kernels == "triton")
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"model.kernels is `triton`: {error}; use `auto` or `eager`") from error


def check_kernels(model: ModelConfig, family: Family, device: torch.device) -> None:
    """Try `model.kernels: triton` without weights. Raises as `fuse`."""
    if model.kernels == "triton":
        with torch.device("meta"):
            transformer = family.from_architecture(family.architecture())
        fuse(transformer, model.kernels, device)
