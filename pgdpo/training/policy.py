"""The policy and the data of a configuration, checked before the first step."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pgdpo.console import say
from pgdpo.data import stale
from pgdpo.data.curation.apply import curate
from pgdpo.data.prepared import PreparedPairs, read_index
from pgdpo.data.schema import LABELS, MANIFEST
from pgdpo.data.sources import shares_of, source_names
from pgdpo.errors import InputError, MachineError
from pgdpo.models import hub, open_family
from pgdpo.models.adapter import add_adapter, start_from
from pgdpo.models.family import Family
from pgdpo.models.kept import compute_dtype
from pgdpo.models.lora_file import Update, init_digest, open_lora
from pgdpo.models.targets import check_targets
from pgdpo.progress import moved
from pgdpo.settings import AdapterConfig, Config, ModelConfig
from pgdpo.training import agreement
from pgdpo.training.attention import check_attention, choose_attention
from pgdpo.training.blocks import tell_of_blocks
from pgdpo.training.engine import deepspeed_config, forward_config, start_distributed
from pgdpo.training.memory import check_selective, save_memory
from pgdpo.training.parallel import Ranks
from pgdpo.training.ulysses import share_tokens
from pgdpo.training.zero_init import gather_in_forward, load_sharded
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
    options = {
        "dtype": compute_dtype(config) if forward_only else base_dtype(config),
        "random_init_seed": config.train.seed if config.model.random_init else None,
    }
    sharded = ranks is not None and config.train.zero_stage == 3
    if sharded:
        shared = forward_config() if forward_only else deepspeed_config(config.train)
        transformer = load_sharded(family, device=device, deepspeed_config=shared, weights=weights, **options)
        if forward_only:
            gather_in_forward(transformer)
    else:
        transformer = family.load_transformer(**options)
        if weights is not None:
            put_weights(transformer, weights)
        transformer = transformer.to(device)
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
    return family, transformer.train(not forward_only)


@torch.no_grad()
def put_weights(transformer: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into the transformer's own, one by one, in the dtypes that these have."""
    for name, tensor in transformer.state_dict().items():
        tensor.copy_(weights[name])
        moved(f"loading {name}")


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
    if clips:
        parts += [family.other_folder] if family.other_folder is not None else []
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


def open_pairs(config: Config, split: str, *, compare: bool = True, **options: Any) -> PreparedPairs:
    """The prepared pairs of `train` (those that `data.select` keeps) or `held_out`; `options` of PreparedPairs.

    `compare`: hold what they were made of against what the configuration names (`data/stale.py`). With
    torch.distributed every rank must call it: the main rank compares for all, and each file is looked at by one rank.

    Raises InputError if they were prepared from something else or with other settings, or lack what a rule reads.
    Whether the model is conditioned on images is not looked at: `require_images` does.
    """
    data = config.data
    if compare:
        agreement.on_main(lambda: _refuse_stale(config, split))
    pairs = PreparedPairs(
        prepared_folder(config, split),
        expect={"sizes": [list(size) for size in data.sizes]},
        seed=config.train.seed,
        caption_dropout=data.caption_dropout if split == "train" else 0.0,
        shared=agreement.shared,
        **options,
    )
    pairs.sources = source_names(data, split)
    if split == "train":
        pairs.shares = shares_of(data)
        pairs.curation = curate(pairs, data, seed=config.train.seed)
    return pairs


def _refuse_stale(config: Config, split: str) -> None:
    """Raises InputError where the prepared data are of something else than the configuration names."""
    compared = compare_prepared(config, split)
    for note in compared.notes:
        say(note)
    if compared.found:
        raise InputError(str(compared))


def compare_prepared(config: Config, split: str, *, full: bool = False) -> stale.Comparison:
    """What is another than it was when `split` was prepared; `full` as `data.stale.compare` takes it.

    Raises InputError if it was not prepared, or by another version.
    """
    folder = prepared_folder(config, split)
    index = read_index(folder)
    try:
        encoders = open_family(config.model).load_encoders(torch.device("cpu"))  # none of their weights
    except InputError:  # said by what needs the model
        encoders = None
    return stale.compare(folder, index, config, split, encoders, full=full)


def require_images(pairs: PreparedPairs, family: Family) -> None:
    """Raises InputError unless the pairs were prepared with the images that the model is conditioned on."""
    pairs.require(image=sorted(family.image_names))


def prepared_folder(config: Config, split: str) -> Path:
    return config.prepared_dir / split


def base_identity(config: Config, family: Family) -> str:
    """Digest of the weights that policy and reference start from, and of what they are told."""
    model = [family.architecture(), *family.told]
    if config.model.random_init:
        return _digest([*model, "random", config.train.seed])
    part = family.transformer_folder
    return _digest([*model, part, family.fingerprint(part)])


def run_identity(config: Config, data: PreparedPairs) -> dict:
    """Hashes of what a run starts from: a checkpoint is of the same model and data, wherever these lie by now.

    `data_hash`: of the files with latents and embeddings; `rows_hash`: of the rows that are trained on, and of their
    manifests' shares; `model_commit`: of a hub id. The main rank reads for all.
    """

    def identity() -> dict:
        init, commit = init_digest(config.model.adapter), hub.commit_of(config.model)
        return {
            "model_hash": base_identity(config, open_family(config.model)),
            "data_hash": data.fingerprint,
            "rows_hash": rows_hash(data),
            **({"init_hash": init} if init else {}),
            **({"model_commit": commit} if commit else {}),
            **told_rounded(config),
        }

    return agreement.on_main(identity)


def told_rounded(config: Config) -> dict:
    """What the model is told, or computes, in other numbers than in runs before this rule; empty where in the same.

    Beside the hash of the weights, which stay those that a run was trained on.
    """
    family = open_family(config.model)
    kept = family.kept_in_fp32 if compute_dtype(config) != torch.float32 else None
    found = "; ".join(filter(None, (family.told_rounded, kept)))
    return {"told_rounded": found} if found else {}


# Columns that came when there were runs already: in the hash only of rows that have them, so that older hashes stay.
LATER_LABELS = ("gap_frequency",)


def rows_hash(data: PreparedPairs) -> str:
    """Digest of the rows that are held (id, prompt and labels) and, where they are visited in shares, of these."""
    first = [key for key in LABELS if key not in LATER_LABELS]
    rows = [
        [row["id"], row["prompt"], *(row.get(key) for key in first)]
        + [[key, row[key]] for key in LATER_LABELS if row.get(key) is not None]
        for row in data.rows
    ]
    if data.shares is None:
        return _digest(rows)
    places = {name: place for place, name in enumerate(data.shares)}
    return _digest([rows, [places[row[MANIFEST]] for row in data.rows], list(map(str, data.shares.values()))])


def check_init(config: Config, identity: dict) -> None:
    """Raises InputError unless `model.adapter.init` is the LoRA that a run of this `run_identity` started from."""
    found, wanted = init_digest(config.model.adapter), identity.get("init_hash")
    if found != wanted:
        raise InputError(
            f"model.adapter.init is {str(config.model.adapter.init)!r}: it is another LoRA than the run started from "
            f"(init_hash {found}, the run's is {wanted}): name that one with model.adapter.init=FILE"
        )


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
