"""What an earlier `prepare` left in a folder, of which the next one takes what it need not make anew."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pgdpo.data.buckets import Size
from pgdpo.data.clips import SAID, Sampling, probe_pair, takes_frames
from pgdpo.data.preparing.made_of import SEEN, FileEntry, entries, names_pictures, pictures_of
from pgdpo.data.shards import (
    ENCODING,
    INDEX,
    note_of,
    shard_notes,
    sound_name,
    tensors_sha256,
    text_notes,
    was_tiled,
    written_files,
)
from pgdpo.diffusion.streams import AUDIO
from pgdpo.files.bounded import parse_json
from pgdpo.models.protocols import Encoders
from pgdpo.rows.manifest import PICTURES, PairRow
from pgdpo.rows.ranked import ends

READABLE = (
    INDEX - 1,
    INDEX,
)  # the format before says of no pair how it was seen: its first frames, one by one
OPEN_FILES = 16  # at most; pairs that stood together mostly still do


class Earlier:
    """The earlier index of a folder and its files. All of it may be missing, damaged, or of other encoders.

    What is taken from a file is held against the hash that the index has of it.
    """

    def __init__(self, folder: Path, encoders: Encoders, latent_dtype: str) -> None:
        self.folder = folder
        self._finished = written_files(folder)
        self._hears = encoders.sound is not None
        self._handles: dict[Path, object] = {}
        self._lock = threading.Lock()  # of the handles: several threads read
        try:
            self._take_over(_read(folder / "index.json"), encoders, latent_dtype)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):  # not what a `prepare` writes
            self._take_over({}, encoders, latent_dtype)

    def _take_over(self, index: dict, encoders: Encoders, latent_dtype: str) -> None:
        self.ids = [row["id"] for row in index.get("pairs", [])]
        self._shards = index.get("shards", [])
        self._pictures, self._image = pictures_of(index), index.get("image", [])
        self._heard = AUDIO in index.get("streams", ())
        self._same_encoders = index.get("encoders") == encoders.fingerprint
        self._texts = [index.get("text", {}), index.get("negative", {})]
        self._rows = {row["id"]: row for row in index.get("pairs", [])}
        made = index["made_of"] if index.get("format") in READABLE else {}
        self.pairs: dict[str, dict] = made.get("pairs", {})
        self._sampling = made.get("sampling")
        same = made.get("encoding") == ENCODING
        parts = made.get("parts", {})
        self._same_clips = (
            same and parts.get("clips") == encoders.parts["clips"] and made["latent_dtype"] == latent_dtype
        )
        self._same_sound = self._same_clips and parts.get("sound") == encoders.parts.get("sound")
        same_encoder = parts.get("text") == encoders.parts["text"]
        self._same_text = same and same_encoder
        # Asked of another text encoder, which may read what this one refuses, they are not asked of this one.
        self.negatives: list[str] = self._texts[1].get("written", []) if same_encoder else []
        self._by_identity = {
            self._identity(
                self._rows[name], self._rows[name]["prompt"], entries(made), self._size(name), made
            ): name
            for name, made in self.pairs.items()
            if name in self._rows
        }

    def place(self, stem: str, key: str) -> Path:
        """Where a file made from `key` stands or is to be written: never over one that was made from another."""
        if key in self._finished:
            return self._finished[key]
        path = self.folder / f"{stem}.safetensors"
        return path.with_stem(f"{stem}-{key[:8]}") if note_of(path).is_file() else path

    def _size(self, name: str) -> Sequence[int]:
        return self._shards[self._rows[name]["shard"]]["size"]

    def _identity(
        self, row: Mapping, prompt: str, files: Mapping[str, FileEntry], size: Sequence[int], seen: Mapping
    ) -> tuple:
        """What a row's tensors follow from, beside the encoders: its prompt too where they hold its embedding. `seen`:
        what a record says of how its clips are."""
        unread = tuple(seen.get("unread", ()))
        starts = ends(row)[0] if takes_frames(self._pictures, files, unread) else ""
        read = prompt if "prompt" in self._image else ""
        hashes = ((key, entry[3]) for key, entry in sorted(files.items()))
        return (*hashes, tuple(size), seen.get("view", ""), unread, starts, read)

    def looked_at(
        self, name: str, files: Mapping[str, FileEntry], size: Size, sampling: Sampling
    ) -> dict | None:
        """What the record says of a pair beside its files, if these were looked at before to be sampled so."""
        made = self.pairs.get(name)
        same = made and name in self._rows and self._sampling == asdict(sampling)
        if not same or tuple(self._size(name)) != tuple(size):
            return None
        if {*entries(made), *PICTURES} != {*files, *PICTURES}:
            return None  # a group with a clip more or less: what is common to all may be another span
        if names_pictures(files) and "unread" not in made:
            return None  # by a version that took them for any part of the clips
        if any(made.get(key, [None] * 4)[3] != entry[3] for key, entry in files.items()):
            return None
        if self._hears != ("sound" in made):
            return None  # one that did not listen, or one that did
        return {key: made[key] for key in SEEN if key in made}

    def tiled(self, size: Size) -> bool | None:
        """Whether the clips of this size that are here, or that a `prepare` that was cut short left, were encoded in
        tiles; None where there are none."""
        there = self._shards if self._rows else shard_notes(self.folder)
        if self._rows and not self._same_clips:
            return None  # all of them are made anew
        return next((was_tiled(entry) for entry in there if tuple(entry["size"]) == tuple(size)), None)

    def text_files(self) -> list[dict]:
        """The entries of the files that stay or whose prompts are taken over, or that a `prepare` that was cut short
        left."""
        if not self._rows:
            return text_notes(self.folder)
        return self._texts[0].get("files", []) if self._same_text or self._same_encoders else []

    def pair(
        self, row: PairRow, files: Mapping[str, FileEntry], size: Size, seen: Mapping, *, tiled: bool | None
    ) -> dict[str, torch.Tensor] | None:
        """The tensors of a pair of these files at this size and `seen` so, encoded in tiles or whole (None: that is the
        same); without those of its sound where they would be others now. Raises InputError where its row says what
        isn't so."""
        identity = self._identity(row.extra, row.prompt, files, size, seen)
        name = self._by_identity.get(identity) if self._same_clips else None
        if name is None:
            return None
        was = self._rows[name]
        if tiled not in (None, was_tiled(self._shards[was["shard"]])):
            return None
        if any(row.extra.get(what) != was.get(what) for what in SAID):
            probe_pair(row)
        sounds = [sound_name(side) for side in row.clips] if self._heard and was["sound"] else []
        names = [*row.clips, *sounds, *self._image, *(["mask"] if "mask" in files else [])]
        found = self._taken(self._shards[was["shard"]], was["key"], names, was["sha256"])
        # In this order: a record of the format before has no span, and no sound either.
        alike = self._same_sound and bool(seen.get("sound")) and self.pairs[name]["span"] == seen["span"]
        return found if alike or found is None else {key: found[key] for key in found if key not in sounds}

    def prompt(self, key: str) -> dict[str, torch.Tensor] | None:
        """The embedding under a prompt's key."""
        text = next((text for text in self._texts if key in text.get("prompts", {})), None)
        if not self._same_text or text is None:
            return None
        number, digest = text["prompts"][key]
        return self._taken(text["files"][number], key, text["names"], digest)

    def superseded(self, groups: Sequence[Sequence[str]]) -> int:
        """Bytes of the shards that hold none of these groups of ids, and stay beside the new ones to the end."""
        there = {tuple(group) for group in groups}
        held: dict[int, list[str]] = {}
        for name, row in self._rows.items():
            held.setdefault(row["shard"], []).append(name)
        return sum(
            self._shards[number]["bytes"] for number, names in held.items() if tuple(names) not in there
        )

    def _taken(
        self, entry: Mapping, key: str, names: Sequence[str], digest: str
    ) -> dict[str, torch.Tensor] | None:
        path = self.folder / entry["file"]
        with contextlib.suppress(OSError, SafetensorError):
            if path.stat().st_size != entry["bytes"]:
                return None  # a mapped file that was cut short would kill the process
            with self._lock:
                if path not in self._handles:
                    if len(self._handles) == OPEN_FILES:
                        self._handles.clear()
                    self._handles[path] = safe_open(path, framework="pt")
                # Copies: what is taken twice shares no memory, and nothing is read from the file later.
                tensors = {name: self._handles[path].get_tensor(f"{key}.{name}").clone() for name in names}
            if tensors_sha256(tensors) == digest:
                return tensors
        return None


def _read(path: Path) -> dict:
    try:
        index = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
