"""What a run starts from, in hashes: the model, what it is told, the rows and files that it is trained on."""

from __future__ import annotations

import hashlib
import json

import torch

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.adapters.lora_file import init_digest
from pgdpo.models.family import Family
from pgdpo.models.weights import hub
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.ranks import agreement
from pgdpo.rows.schema import LABELS, MANIFEST


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
LATER_LABELS = ("gap_frequency", "samples")


def rows_hash(data: PreparedPairs) -> str:
    """Digest of the rows that are held (id, prompt and labels) and, where they are visited in shares, of these."""
    first = [key for key in LABELS if key not in LATER_LABELS]
    # Preferences by aspect are labels where a sample has several parts, of which they may be.
    later = (*LATER_LABELS, *["dimensions"] * (len(getattr(data, "streams", ())) > 1))
    rows = [
        [row["id"], row["prompt"], *(row.get(key) for key in first)]
        + [[key, row[key]] for key in later if row.get(key) is not None]
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
