"""What a run leaves on disk: prepared latents and embeddings, checkpoints, and how long one takes to write."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from pgdpo.data.sources import sources_of
from pgdpo.data.tables import read_records
from pgdpo.planning.memory import FP32, MOMENTS, trained
from pgdpo.planning.model import Size
from pgdpo.settings import Config, TrainConfig


@dataclass(frozen=True)
class Disk:
    """Bytes on disk; `pairs` is None where the manifests could not be read, and a thousand pairs are planned."""

    pairs: int | None
    latents: int
    text: int
    checkpoint: int
    checkpoints: int  # kept ones together, and the one that is being written
    checkpoint_seconds: float
    free: int

    @property
    def total(self) -> int:
        return self.latents + self.text + self.checkpoints

    @property
    def fits(self) -> bool:
        return self.total <= self.free


def plan_disk(
    config: Config,
    sizes: list[Size],
    latent_shape: tuple[int, ...],
    *,
    conditioning: int,
    moving: int,
    bandwidth: float,
) -> Disk:
    """`conditioning`: bytes of one pair's, as it is stored; `moving`: elements of a reference that follows the policy;
    `bandwidth`: bytes a second of all ranks together."""
    pairs = _count_pairs(config)
    latents, text = _prepared(config) or (
        2
        * (pairs or 1000)
        * torch.Size(latent_shape).numel()
        * getattr(torch, config.data.latent_dtype).itemsize,
        (pairs or 1000) * conditioning,
    )
    checkpoint = checkpoint_bytes(sizes, moving)
    return Disk(
        pairs,
        latents,
        text,
        checkpoint,
        (kept_checkpoints(config.train) + 1) * checkpoint,
        checkpoint / bandwidth,
        _free(config.output_dir),
    )


def kept_checkpoints(train: TrainConfig) -> int:
    """Checkpoints that a finished run keeps: the newest, and every multiple of `keep_every` among the others."""
    every = train.keep_every
    newest = train.steps - train.checkpoint_every * (train.keep_checkpoints - 1)
    return train.keep_checkpoints + (0 if every is None else max(0, (newest - 1) // every))


def checkpoint_bytes(sizes: list[Size], moving: int = 0) -> int:
    """Tensors of one checkpoint: weights that train and their moments, and `moving` elements of a reference that moves,
    all in fp32 whatever the ZeRO stage (training/optimizer_state.py)."""
    return FP32 * (trained(sizes) + moving) + MOMENTS * trained(sizes)


def _prepared(config: Config) -> tuple[int, int] | None:
    """(latents, text) of prepared folders, if all splits were prepared at this size."""
    latents = text = 0
    for split in ("train", *(["held_out"] if config.data.held_out else [])):
        try:
            index = json.loads((config.prepared_dir / split / "index.json").read_text(encoding="utf-8"))
        except OSError:
            return None
        if index.get("sizes") != [list(size) for size in config.data.sizes]:
            return None
        latents += sum(entry["bytes"] for entry in index["shards"])
        text += index["text"]["bytes"] + index.get("negative", {"bytes": 0})["bytes"]
    return latents, text


def _count_pairs(config: Config) -> int | None:
    """Rows of the manifests, unchecked; None if one cannot be read."""
    data = config.data
    if "toy" in (data.train, data.held_out):
        return data.toy.train_pairs + data.toy.held_out_pairs
    splits = ("train",) if data.splits_itself else ("train", "held_out")
    sources = [source for split in splits for source in sources_of(data, split, config.output_dir / "toy")]
    try:
        return sum(1 for source in sources for _ in islice(read_records(source.manifest), source.most))
    except (OSError, ValueError):
        return None


def _free(folder: Path) -> int:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
