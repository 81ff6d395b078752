"""Safetensors files that are written once: each with a `.json` beside it that says what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from pgdpo.files.atomic import atomic_path, sha256_of, write_json
from pgdpo.files.bounded import parse_json
from pgdpo.messages.errors import InputError

ENCODING = 3  # of what stands in the files: raised only where the same clip or prompt would give other bytes
INDEX = 5  # layout of a prepared folder's index.json

FILE_PARTS = {"key": str, "sha256": str, "bytes": int, "names": list}  # without which a note is damaged
SHARD_PARTS = FILE_PARTS | {"size": list, "pairs": list, "bad": list}
TEXT_PARTS = FILE_PARTS | {"prompts": dict}


def kept(path: Path, key: str) -> dict | None:
    """The entry of the file at `path`, if it was made from `key` and still has its hash."""
    entry = _read_note(note_of(path))
    whole = entry and entry["key"] == key and path.is_file() and entry["sha256"] == sha256_of(path)
    return entry if whole else None


def write(path: Path, key: str, tensors: dict[str, torch.Tensor], beside: dict) -> dict:
    """Write what was made from `key`. Returns the file's entry: name, bytes, SHA-256, and `beside`."""
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    size = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    entry = {"file": path.name, "key": key, **size, **beside}
    write_json(note_of(path), entry)
    return entry


def _read_note(note: Path) -> dict | None:
    """What `write` left beside a file; None where that is not there or damaged: the file is then made anew."""
    try:
        entry = parse_json(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("file") != note.with_suffix(".safetensors").name:
        return None
    parts = SHARD_PARTS if note.name.startswith("shard-") else TEXT_PARTS
    return entry if all(isinstance(entry.get(part), kind) for part, kind in parts.items()) else None


def note_of(path: Path) -> Path:
    return path.with_suffix(".json")


def written_files(folder: Path) -> dict[str, Path]:
    """The key of every finished file of a folder -> the file."""
    patterns = ("shard-*.json", "text-*.json", "negative-*.json")
    notes = {note: _read_note(note) for pattern in patterns for note in folder.glob(pattern)}
    return {entry["key"]: note.with_suffix(".safetensors") for note, entry in sorted(notes.items()) if entry}


def shard_notes(folder: Path) -> list[dict]:
    """The entries of a folder's finished shards."""
    return [entry for note in sorted(folder.glob("shard-*.json")) if (entry := _read_note(note))]


def text_notes(folder: Path) -> list[dict]:
    """The entries of a folder's finished files of prompts."""
    return [entry for note in sorted(folder.glob("text-*.json")) if (entry := _read_note(note))]


def was_tiled(entry: Mapping) -> bool:
    """Whether a shard's clips went through the VAE in tiles, where they are larger than one: earlier versions, which
    don't say, always did it so."""
    return entry.get("tiled", True)


def content_key(*parts: object) -> str:
    """What a file is made from, as a hash."""
    return hashlib.sha256(json.dumps([ENCODING, *parts]).encode()).hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items()):
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def prompt_key(prompt: str) -> str:
    """Name of a prompt's embedding in the text files."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def sound_name(side: str) -> str:
    """Name of the latents of a clip's sound, beside the picture's."""
    return f"{side}.audio"


def read_index(folder: Path) -> dict:
    """A prepared folder's index. Raises InputError if it is not there, or of another version."""
    path = folder / "index.json"
    try:
        index = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not there: run `pgdpo prepare` with this configuration first") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}): name a folder with data.prepared, or see to its rights"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}): run `pgdpo prepare` again") from error
    version = index.get("format") if isinstance(index, dict) else None
    if version != INDEX:
        known = isinstance(version, int) and version < INDEX
        made = (
            "an earlier version, which did not write down what it was made of" if known else "another version"
        )
        raise InputError(
            f"{path}: made by {made} (format {version!r}, this one reads {INDEX}): run `pgdpo prepare` again: it keeps "
            "what is encoded"
        )
    return index
