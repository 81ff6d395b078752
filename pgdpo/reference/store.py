"""The reference's errors on disk: what they were computed with, and rows by (pair id, draw).

A folder per key, `output_dir/reference/<digest of the key>/`, with `key.json` and shards of rows. A shard's name is the
SHA-256 of its bytes: it appears whole or not at all, ranks and runs never write the same name with other contents, and
what is done is what the shards hold, whatever wrote them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load, save

from pgdpo.files.atomic import atomic_path, write_json
from pgdpo.files.bounded import parse_json
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved

FORMAT = 1
KEY = "key.json"
MEND = "run `pgdpo reference CONFIG` with this run's configuration and changes"


@dataclass(frozen=True)
class ErrorRows:
    """Errors of the reference on `R` (group, draw)s of `K` samples, two of a pair, with `F` latent frames."""

    pair_id: torch.Tensor  # int64 [R]
    draw: torch.Tensor  # int64 [R]
    sigma: torch.Tensor  # fp32 [R], the noise level of the draw
    sums: torch.Tensor  # fp64 [R, K, F], sum of squared residuals per frame, zeros beyond a group's own

    def items(self) -> list[tuple[int, int]]:
        return list(zip(self.pair_id.tolist(), self.draw.tolist(), strict=True))


def folder_of(root: Path, key: dict) -> Path:
    """Where the errors of `key` lie under `root`."""
    return root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


def create(root: Path, key: dict) -> Path:
    """The folder of `key`, made where it is not there."""
    folder = folder_of(root, key)
    if not (folder / KEY).is_file():
        write_json(folder / KEY, key)
    return folder


def write_rows(folder: Path, rows: ErrorRows) -> None:
    """Add one shard, atomically."""
    data = save({name: tensor.cpu().contiguous() for name, tensor in vars(rows).items()})
    with atomic_path(folder / f"{hashlib.sha256(data).hexdigest()}.safetensors") as temporary:
        temporary.write_bytes(data)


def read_rows(folder: Path, rank: int = 0, ranks: int = 1) -> dict[str, ErrorRows]:
    """Rows of a folder by shard, of every `ranks`-th shard from `rank` on, which ranks share so; `joined` puts them
    together. Raises InputError for a damaged shard, naming it."""
    paths = sorted(folder.glob("*.safetensors"))[rank::ranks]
    return {path.name: _read_shard(path) for path in paths}


def joined(read: Iterable[Mapping[str, ErrorRows]]) -> ErrorRows | None:
    """All rows of what ranks read, in the same order whatever their number; None where there are none."""
    shards = {name: rows for part in read for name, rows in part.items()}
    if not shards:
        return None
    parts = [shards[name] for name in sorted(shards)]
    names = [field.name for field in fields(ErrorRows)]
    return ErrorRows(**{name: torch.cat([getattr(rows, name) for rows in parts]) for name in names})


def _read_shard(path: Path) -> ErrorRows:
    moved(f"reading reference errors, {path.name[:8]}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise InputError(
            f"{path}: its SHA-256 is not its name: the file was damaged or changed; remove it and {MEND}, which "
            "computes just these rows anew"
        )
    return ErrorRows(**load(data))


def open_rows(root: Path, key: dict, rank: int = 0, ranks: int = 1) -> dict[str, ErrorRows]:
    """The rows computed with `key`, as `read_rows` gives them.

    Raises InputError where there are only others', naming what differs in the nearest of them.
    """
    keys = {path.parent: _read_key(path.parent) for path in sorted(root.glob(f"*/{KEY}"))}
    folder = folder_of(root, key)
    if not keys or keys.get(folder) == key:
        return read_rows(folder, rank, ranks)
    nearest = min(keys.values(), key=lambda other: len(_differences(other, key)))
    listed = "; ".join(
        f"`{name}`: found {nearest.get(name)!r}, wanted {key.get(name)!r}"
        for name in _differences(nearest, key)
    )
    raise InputError(
        f"train.reference is `cached`, but the errors in {root} are another reference's: {listed}. For this one's, "
        f"{MEND}"
    )


def _read_key(folder: Path) -> dict:
    path = folder / KEY
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}): remove {folder} and {MEND}") from error


def _differences(found: dict, wanted: dict) -> list[str]:
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
