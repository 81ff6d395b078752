"""What a run leaves on disk: prepared latents and embeddings, checkpoints, and how long one takes to write."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from pgdpo.config import Config, TrainConfig
from pgdpo.data.sources import sources_of
from pgdpo.files.bounded import parse_json
from pgdpo.files.tables import Record, read_records
from pgdpo.messages.units import size_text
from pgdpo.planning.costs.memory import FP32, MOMENTS, trained
from pgdpo.planning.costs.meta import Size
from pgdpo.rows.schema import sides_of

ASSUMED_PAIRS = 1000  # where no manifest can be read


@dataclass(frozen=True)
class Room:
    """A file system and what comes to lie on it."""

    folders: dict[str, str]  # key of the configuration -> folder
    need: int  # bytes that are still to be written
    free: int


@dataclass(frozen=True)
class Disk:
    """Bytes on disk; `pairs` is None where the manifests could not be read, and a thousand pairs are planned."""

    pairs: int | None
    latents: int
    text: int
    checkpoint: int
    checkpoints: int  # kept ones together, and the one that is being written
    checkpoint_seconds: float
    rooms: tuple[Room, ...]

    @property
    def total(self) -> int:
        return self.latents + self.text + self.checkpoints

    @property
    def fits(self) -> bool:
        return all(room.need <= room.free for room in self.rooms)


def plan_disk(
    config: Config,
    sizes: list[Size],
    *,
    per_sample: int,
    counts: dict[str, Counter[int] | None],
    conditioning: int,
    moving: int,
    bandwidth: float,
) -> Disk:
    """`per_sample`: numbers in its latents; `counts`: of `count_groups`, by split; `conditioning`: bytes of one
    group's, as it is stored; `moving`: elements of a reference that follows the policy; `bandwidth`: bytes a second of
    all ranks together."""
    known = None not in counts.values()
    pairs = sum(each.total() for each in counts.values()) if known else None
    planned = pairs if known else ASSUMED_PAIRS
    samples = (
        sum(size * count for each in counts.values() for size, count in each.items())
        if known
        else 2 * planned
    )
    stored = _prepared(config)
    latents, text = stored or (
        samples * per_sample * getattr(torch, config.data.latent_dtype).itemsize,
        planned * conditioning,
    )
    checkpoint = checkpoint_bytes(sizes, moving)
    watched = config.evaluate.every is not None and config.train.keep_best is not None
    checkpoints = len(config.parts) * most_checkpoints(config.train, best=watched) * checkpoint
    folders = [part.run_dir / "checkpoints" for part in config.parts]
    written = sum(file.stat().st_size for folder in folders for file in folder.glob("*/*"))
    needs = {
        "output_dir": (config.output_dir, max(0, checkpoints - written)),
        "data.prepared": (config.prepared_dir, 0 if stored else latents + text),
    }
    return Disk(pairs, latents, text, checkpoint, checkpoints, checkpoint / bandwidth, tuple(_rooms(needs)))


def explain_disk(disk: Disk, config: Config) -> str:
    """By how much the disks are too small, and what would need less."""
    lines = []
    for room in disk.rooms:
        if room.need > room.free:
            named = " and ".join(f"{key} ({folder})" for key, folder in room.folders.items())
            lines.append(
                f"the disk of {named} has {size_text(room.free)} free, and the run writes {size_text(room.need)} to it"
            )
    taken = f" (of {ASSUMED_PAIRS:,} pairs: the manifests cannot be read)" if disk.pairs is None else ""
    lines.append(
        f"prepared pairs are {size_text(disk.latents + disk.text)}{taken}, a checkpoint is "
        f"{size_text(disk.checkpoint)}, of which {disk.checkpoints // max(1, disk.checkpoint)} are there at once"
    )
    return "\n".join([*lines, f"make room, or: {'; '.join(_savings(config))}"])


def _savings(config: Config) -> Iterator[str]:
    if config.train.keep_checkpoints > 1:
        yield "train.keep_checkpoints=1"
    if config.train.keep_every is not None:
        yield "train.keep_every=null"
    if config.evaluate.every is not None and config.train.keep_best is not None:
        yield "train.keep_best=null"
    if config.data.latent_dtype == "float32":
        yield "data.latent_dtype=bfloat16"
    yield "output_dir or data.prepared on a larger disk"


def most_checkpoints(train: TrainConfig, *, best: bool = False) -> int:
    """Checkpoints that are there at once: the last of a run, while it is written, and what is kept of those before;
    `best`: one of these by a held-out figure."""
    before = math.ceil(train.steps / train.checkpoint_every) - 1
    newest = min(train.keep_checkpoints, before)
    older = (before - newest) * train.checkpoint_every  # the step of the newest among them
    multiples = 0 if train.keep_every is None else older // train.keep_every
    return newest + multiples + (best and before > newest + multiples) + 1


def checkpoint_bytes(sizes: list[Size], moving: int = 0) -> int:
    """Tensors of one checkpoint: weights that train and their moments, and `moving` elements of a reference that moves,
    all in fp32 whatever the ZeRO stage (checkpoints/optimizer_state.py)."""
    return FP32 * (trained(sizes) + moving) + MOMENTS * trained(sizes)


def _prepared(config: Config) -> tuple[int, int] | None:
    """(latents, text) of prepared folders, if all splits were prepared at this size."""
    latents = text = 0
    for split in ("train", *(["held_out"] if config.data.held_out else [])):
        index = _index(config, split)
        if index is None:
            return None
        latents += sum(entry["bytes"] for entry in index["shards"])
        text += index["text"]["bytes"] + index.get("negative", {"bytes": 0})["bytes"]
    return latents, text


def _index(config: Config, split: str) -> dict | None:
    """That of a prepared split, if it was prepared at this size."""
    try:
        index = parse_json((config.prepared_dir / split / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(index, dict) and index.get("sizes") == [list(size) for size in config.data.sizes]
    return index if fits else None


def count_groups(config: Config, split: str) -> Counter[int] | None:
    """Groups by their number of samples (2 of pairs): prepared ones, else rows of the manifests, unchecked; None if one
    cannot be read."""
    data = config.data
    index = _index(config, split)
    if index is not None:
        return Counter(len(sides_of(row)) for row in index["pairs"])
    if getattr(data, split) == "toy":
        return Counter(
            {data.toy.samples: data.toy.train_pairs if split == "train" else data.toy.held_out_pairs}
        )
    if getattr(data, split) is None:
        return Counter()
    try:
        rows = Counter(
            len(sides_of(record.values)) if isinstance(record, Record) else 2
            for source in sources_of(data, split, config.output_dir / "toy")
            for record in islice(read_records(source.manifest), source.most)
        )
    except (OSError, ValueError):
        return None
    if not data.splits_itself:
        return rows
    # Of prompts: of groups about as many.
    held_out = +Counter({size: round(count * data.held_out.share) for size, count in rows.items()})
    return held_out if split == "held_out" else rows - held_out


def _rooms(needs: dict[str, tuple[Path, int]]) -> Iterator[Room]:
    """The file systems that folders lie on, each with what all of its folders need together."""
    found: dict[int, list[tuple[str, Path, int]]] = {}
    for key, (folder, need) in needs.items():
        found.setdefault(_existing(folder).stat().st_dev, []).append((key, folder, need))
    for members in found.values():
        free = shutil.disk_usage(_existing(members[0][1])).free
        folders = {key: str(folder) for key, folder, _ in members}
        yield Room(folders, sum(need for _, _, need in members), free)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
