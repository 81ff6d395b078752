"""Prepared pairs, read back: an index-based data set and an order that is a pure function of the position."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch.utils.data import Dataset

from pgdpo.data.files import sha256_of
from pgdpo.data.prepare import FORMAT, prompt_key
from pgdpo.diffusion.draws import uniform
from pgdpo.errors import InputError


class PreparedPairs(Dataset):
    """The pairs of a prepared folder. An item is addressed by (index, draw); `draw` counts a pair's visits.

    Raises InputError if the folder was not prepared, was prepared otherwise than asked, or a file's hash is wrong.
    """

    def __init__(
        self, folder: Path, *, expect: dict | None = None, seed: int = 0, caption_dropout: float = 0.0
    ) -> None:
        self.folder = folder
        self.index = _read_index(folder)
        for key, value in (expect or {}).items():
            if self.index[key] != value:
                raise InputError(
                    f"{folder}/index.json: `{key}` is {self.index[key]!r}, this configuration needs {value!r}: run "
                    "`pgdpo prepare` with it again"
                )
        self.rows = self.index["pairs"]
        self.seed = seed
        self.caption_dropout = caption_dropout
        self._handles: dict[str, object] = {}
        self._verify()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handles": {}}  # open files do not travel to loader processes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        index, draw = item
        row = self.rows[index]
        shard = self._open(self.index["shards"][row["shard"]]["file"])
        pair_id = pair_hash(row["id"])
        dropped = uniform(self.seed, pair_id, draw, stream="caption") < self.caption_dropout
        return {
            "id": row["id"],
            "pair_id": pair_id,
            "draw": draw,
            "row": row,
            "chosen": shard.get_tensor(f"{row['key']}.chosen").float(),
            "rejected": shard.get_tensor(f"{row['key']}.rejected").float(),
            "prompt": self.prompt("" if dropped else row["prompt"]),
        }

    def prompt(self, text: str) -> torch.Tensor:
        """Embedding of one of the manifest's prompts (or the empty one), zero-padded: `[text_length, D]`."""
        embedding = self._open(self.index["text"]["file"]).get_tensor(prompt_key(text))
        padded = embedding.new_zeros(self.index["text_length"], embedding.shape[1])
        padded[: len(embedding)] = embedding
        return padded

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the hashes of all files."""
        entries = [self.index["text"], *self.index["shards"]]
        return hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest()[:16]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """`(C, F, H, W)`."""
        return tuple(self._open(self.index["shards"][0]["file"]).get_slice("0.chosen").get_shape())

    def _open(self, name: str):
        if name not in self._handles:
            self._handles[name] = safe_open(self.folder / name, framework="pt")
        return self._handles[name]

    def _verify(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._verify_file, [self.index["text"], *self.index["shards"]]))

    def _verify_file(self, entry: dict) -> None:
        path = self.folder / entry["file"]
        if not path.is_file():
            raise InputError(
                f"{path}: the file is missing: run `pgdpo prepare` again, it makes what is missing"
            )
        found = sha256_of(path)
        if found != entry["sha256"]:
            raise InputError(
                f"{path}: its SHA-256 is {found[:12]}..., the index says {entry['sha256'][:12]}...: the file was "
                "damaged or changed; run `pgdpo prepare` again, it makes just this one anew"
            )


def _read_index(folder: Path) -> dict:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not there: run `pgdpo prepare` with this configuration first") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON ({error}): run `pgdpo prepare` again") from error
    if index.get("format") != FORMAT:
        raise InputError(
            f"{path}: format {index.get('format')!r}, this version reads {FORMAT}: prepare it again"
        )
    return index


def pair_hash(pair_id: str) -> int:
    """The 63-bit number by which a pair's draws are keyed."""
    return int.from_bytes(hashlib.sha256(pair_id.encode()).digest()[:8], "little") >> 1


def position_to_item(position: int, *, length: int, seed: int) -> tuple[int, int]:
    """(index, draw) of a position in the endless order: a pure function, whatever the world size.

    The draw is the epoch: every pair is visited once an epoch, in an order shuffled anew.
    """
    epoch, offset = divmod(position, length)
    return int(_permutation(length, seed, epoch)[offset]), epoch


@functools.lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(length)


class StepBatches:
    """Batches of items for one rank: `global_batch` pairs a step, split over ranks, then into micro-batches."""

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        steps: range,
    ) -> None:
        self.item = functools.partial(position_to_item, length=length, seed=seed)
        self.per_rank = global_batch // world
        self.offset = rank * self.per_rank
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps) * (self.per_rank // self.micro_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            start = step * self.global_batch + self.offset
            for first in range(start, start + self.per_rank, self.micro_batch):
                yield [self.item(position) for position in range(first, first + self.micro_batch)]


def collate(items: list[dict]) -> dict:
    """Items -> a batch.

    `latents` [2B, C, F, H, W] (chosen half first), `prompt` [2B, L, D], `pair_ids` and `draw` [B], `ids`, `rows`.
    """
    latents = torch.stack([item["chosen"] for item in items] + [item["rejected"] for item in items])
    prompt = torch.stack([item["prompt"] for item in items])
    return {
        "ids": [item["id"] for item in items],
        "rows": [item["row"] for item in items],
        "pair_ids": torch.tensor([item["pair_id"] for item in items]),
        "draw": torch.tensor([item["draw"] for item in items]),
        "latents": latents,
        "prompt": torch.cat([prompt, prompt]),
    }
