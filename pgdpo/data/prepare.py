"""Clips and prompts -> latents and embeddings, once: safetensors shards that hold a fixed number of pairs.

A prepared folder holds `shard-00000.safetensors`, ... (`<i>.chosen`, `<i>.rejected` of shape [C, F, H, W]), each with
a `.json` beside it that says what it was made from; `text.safetensors` with one embedding per distinct prompt; and,
written last, `index.json` with the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from pgdpo.config import DataConfig
from pgdpo.console import progress_bar
from pgdpo.data.files import atomic_path, sha256_of, write_json
from pgdpo.data.manifest import PairRow, read_manifest
from pgdpo.data.video import probe_video, read_video
from pgdpo.errors import InputError
from pgdpo.models import Encoders

FORMAT = 1


def prepare(manifest: Path, folder: Path, config: DataConfig, encoders: Encoders) -> dict:
    """Encode every pair of `manifest` into `folder`; shards that are there and still valid are kept.

    Returns the index. Raises InputError for a bad row or clip, before the index is written.
    """
    encoders.check_size(config.num_frames, config.height, config.width)
    rows = read_manifest(manifest)
    groups = [rows[i : i + config.pairs_per_shard] for i in range(0, len(rows), config.pairs_per_shard)]
    text = _prepare_text(rows, folder, encoders)
    shards = []
    with progress_bar(f"prepare {manifest.name}", total=len(rows)) as bar:
        for number, group in enumerate(groups):
            shards.append(
                _prepare_shard(folder / f"shard-{number:05d}.safetensors", group, config, encoders, bar)
            )
    index = {
        "format": FORMAT,
        "encoders": encoders.fingerprint,
        "size": [config.num_frames, config.height, config.width],
        "text_length": encoders.text_length,
        "text": text,
        "shards": shards,
        "pairs": [
            {"id": row.id, "prompt": row.prompt, "shard": number, "key": str(position), **row.extra}
            for number, group in enumerate(groups)
            for position, row in enumerate(group)
        ],
    }
    write_json(folder / "index.json", index)
    for stale in (
        set(folder.glob("shard-*"))
        - {folder / s["file"] for s in shards}
        - {_note(folder / s["file"]) for s in shards}
    ):
        stale.unlink()
    return index


def _prepare_text(rows: Sequence[PairRow], folder: Path, encoders: Encoders) -> dict:
    """Embeddings of every distinct prompt, and of the empty one (caption dropout, guidance)."""
    prompts = sorted({row.prompt for row in rows} | {""})
    key = _key(encoders.fingerprint, prompts)
    return _write_once(folder / "text.safetensors", key, lambda: _embed(prompts, encoders))


def _embed(prompts: list[str], encoders: Encoders) -> dict[str, torch.Tensor]:
    tensors = {}
    with progress_bar("encode prompts", total=len(prompts)) as bar:
        for start in range(0, len(prompts), 32):
            batch = prompts[start : start + 32]
            for prompt, embedding in zip(batch, encoders.encode_prompts(batch), strict=True):
                tensors[prompt_key(prompt)] = embedding.contiguous()
            bar.advance(len(batch))
    return tensors


def _prepare_shard(path: Path, rows: Sequence[PairRow], config: DataConfig, encoders: Encoders, bar) -> dict:
    size = (config.num_frames, config.height, config.width)
    clips = [[row.id, sha256_of(row.chosen), sha256_of(row.rejected)] for row in rows]
    key = _key(encoders.fingerprint, size, config.latent_dtype, clips)
    done = 0

    def encode() -> dict[str, torch.Tensor]:
        nonlocal done
        dtype = getattr(torch, config.latent_dtype)
        tensors = {}
        for position, row in enumerate(rows):
            _check_alike(row)
            for side in ("chosen", "rejected"):
                latents = encoders.encode_video(_read_clip(row, side, size))
                tensors[f"{position}.{side}"] = latents.to(dtype).contiguous()
            done += 1
            bar.advance()
        return tensors

    entry = _write_once(path, key, encode)
    bar.advance(len(rows) - done)
    return entry


def _check_alike(row: PairRow) -> None:
    """Chosen and rejected must differ in what was judged, not in size or length."""
    chosen, rejected = probe_video(row.chosen), probe_video(row.rejected)
    for what in ("width", "height", "num_frames"):
        first, second = getattr(chosen, what), getattr(rejected, what)
        if first != second:
            raise InputError(
                f"pair `{row.id}`: {what} is {first} in {row.chosen} and {second} in {row.rejected}: both clips of a "
                "pair must be of one size and length; re-encode one of them or leave the row out"
            )


def _read_clip(row: PairRow, side: str, size: tuple[int, int, int]):
    try:
        return read_video(getattr(row, side), num_frames=size[0], size=size[1:])
    except InputError as error:
        raise InputError(f"pair `{row.id}`, {side}: {error}") from error


def _write_once(path: Path, key: str, make) -> dict:
    """Write `make()` to `path`, unless the file there was made from the same `key` and still has its hash."""
    note = _note(path)
    if path.is_file() and note.is_file():
        entry = json.loads(note.read_text(encoding="utf-8"))
        if entry.get("key") == key and entry.get("sha256") == sha256_of(path):
            return entry
    tensors = make()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    entry = {"file": path.name, "key": key, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(note, entry)
    return entry


def _note(path: Path) -> Path:
    return path.with_suffix(".json")


def _key(*parts) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()


def prompt_key(prompt: str) -> str:
    """Name of a prompt's embedding in `text.safetensors`."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]
