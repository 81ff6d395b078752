"""The clips of prepared data: shards of a fixed number of pairs, each made by the rank whose turn it is.

Four things go on at a time on a rank: the next shard's clips are looked at, the next pairs' are read, one clip is
encoded, and the shard before is hashed and written. A clip goes through the VAE by itself: in a batch every family's
VAE gives it other last digits.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pgdpo.config import DataConfig
from pgdpo.data.bad import check_bad
from pgdpo.data.buckets import Size, size_name
from pgdpo.data.clips import (
    PairPlan,
    Sampling,
    clip_identity,
    plan_pair,
    read_pair,
    read_pictures,
    unread_identity,
    unread_pictures,
)
from pgdpo.data.masks import read_mask
from pgdpo.data.preparing.ahead import Behind, ahead
from pgdpo.data.preparing.earlier import Earlier
from pgdpo.data.preparing.made_of import SEEN, FileEntry, Hashes, names_pictures
from pgdpo.data.preparing.sounds import read_sounds, treatment
from pgdpo.data.shards import content_key, kept, sound_name, tensors_sha256, write
from pgdpo.diffusion.streams import AUDIO
from pgdpo.messages.console import progress_bar
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved
from pgdpo.models.family import Family
from pgdpo.models.protocols import Encoders
from pgdpo.ranks.joined import Ranks
from pgdpo.rows.manifest import PairRow
from pgdpo.video import Sound

LOOKS = 4  # clips that are looked at at a time
READERS = 4  # pairs that are read at a time
AHEAD = 6  # pairs that are read, or being read, before the one that is encoded


@dataclass(frozen=True)
class Work:
    """What every file of a folder is made with."""

    folder: Path
    config: DataConfig
    sampling: Sampling
    family: Family
    encoders: Encoders
    ranks: Ranks
    earlier: Earlier
    hashes: Hashes

    def files(self, row: PairRow) -> dict[str, FileEntry]:
        return self.hashes.files(row, self.encoders.pictures)

    def tiled(self, size: Size) -> bool | None:
        """Whether clips of this size are encoded in tiles; None where that is the same as whole."""
        tiling = self.encoders.tiling
        return tiling.of(size, "encoded") if tiling is not None and tiling.cuts(size, "encoded") else None

    def share(self) -> str:
        """Which part of the work a progress bar is of."""
        return f" (rank 0's share of {self.ranks.count})" if self.ranks.count > 1 else ""


class Shard(NamedTuple):
    """A shard's entry, what its rows' files are (bad ones' too) and how they were seen, and of its rows those that
    were encoded, and those that were looked at and have clips of several lengths."""

    entry: dict
    made_of: dict[str, dict[str, Any]]
    encoded: int
    unequal: int


def prepare_shards(rows: Sequence[PairRow], buckets: Sequence[Sequence[PairRow]], work: Work) -> list[Shard]:
    """All shards in order, on every rank. `rows`: all that there were; `buckets`: those of each size.

    A rank holds the frames of `AHEAD` pairs and of the one in hand, and the latents of two shards.
    """
    config, ranks = work.config, work.ranks
    jobs = [
        (size, number, members[first : first + config.pairs_per_shard])
        for size, members in zip(config.sizes, buckets, strict=True)
        for number, first in enumerate(range(0, len(members), config.pairs_per_shard))
    ]
    mine = {}
    for job in range(ranks.rank, len(jobs), ranks.count):
        size, number, group = jobs[job]
        mine[job] = _Making(work, size, group, f"shard-{size_name(size)}-{number:05d}")
    total, count = sum(len(making.rows) for making in mine.values()), itertools.count(1)
    done, bad = {}, {}
    reads = ahead(_read, _members(mine), threads=READERS, most=AHEAD)
    with (
        progress_bar(f"encode clips{work.share()}", total=total) as bar,
        Behind() as behind,
        contextlib.closing(reads),
    ):
        for job, members in itertools.groupby(reads, key=lambda read: read[0].job):
            making = mine[job]
            making.looked.result()
            for member, read in members:
                making.encode(member.row, read)
                del read  # with its frames
                bar.advance()
                moved(f"encoded {member.row.kind} {next(count)} of {total}")
            done[job] = behind.begin(making.finish)
            bad |= {entry["id"]: entry["reason"] for entry in making.all_bad}
            check_bad(bad, len(rows), config.on_bad_data, str(work.folder))
    return in_order(ranks.gather({job: shard.result() for job, shard in done.items()}))


class _Member(NamedTuple):
    """A row of a shard in the making."""

    job: int
    making: _Making
    row: PairRow


def _members(makings: Mapping[int, _Making]) -> Iterator[_Member]:
    """The rows of all shards; the clips of a shard, and of the next, begin to be looked at when its first is asked."""
    for (job, making), looked in ahead(lambda each: each[1].look(), makings.items(), threads=1, most=2):
        making.looked = looked
        yield from (_Member(job, making, row) for row in making.rows)


class _Read(NamedTuple):
    """What there is of a pair before the VAE: its tensors where they are taken over from before, else frames by side,
    the pictures that the model is given, by frame, and the mask where the row has one; and the sounds by side that no
    tensors are there of."""

    tensors: dict[str, torch.Tensor] | None = None
    frames: dict[str, np.ndarray] = {}
    pictures: dict[int, np.ndarray] = {}
    mask: torch.Tensor | None = None
    sounds: dict[str, Sound] = {}


def _read(member: _Member) -> _Read:
    """Nothing of a pair that need not be encoded. Raises InputError."""
    member.making.looked.result()
    return member.making.read(member.row)


def in_order(parts: Sequence[dict[int, Any]]) -> list:
    """What the ranks did, by number."""
    return [entry for _, entry in sorted(item for part in parts for item in part.items())]


@dataclass
class _Making:
    """One shard in the making. `made_of`: what a record says of each row; `known`: identity and view of the good ones;
    `plans`: of those whose clips were looked at now; `entry`: of the file that is there and stays."""

    work: Work
    size: Size
    rows: Sequence[PairRow]
    stem: str
    looked: Future[None] | None = None
    entry: dict | None = None
    made_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: dict[str, dict] = field(default_factory=dict)
    plans: dict[str, PairPlan] = field(default_factory=dict)
    bad: list[dict] = field(default_factory=list)
    pairs: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    encoded: int = 0

    def look(self) -> None:
        """Fill `made_of` and, but for rows that are bad, `known`; clips that were seen before are not opened."""
        with ThreadPoolExecutor(LOOKS) as pool:
            for row, found in zip(self.rows, pool.map(self._look_at, self.rows), strict=True):
                files, identity, seen, error = found
                self.made_of[row.id] = {**files, **seen}
                if error is not None:
                    self._refuse(row, error)
                    continue
                heard = {"sound": seen["span"]} if seen.get("sound") else {}
                self.known[row.id] = identity | ({"view": seen["view"]} if seen["view"] else {}) | heard
        # Files of earlier versions, which encoded in tiles, keep their key.
        whole = ["whole"] if self.work.tiled(self.size) is False else []
        made_by = self.work.encoders.fingerprint, self.size, self.work.config.latent_dtype
        self.key = content_key(*made_by, list(self.known.items()), self.bad, *whole)
        self.path = self.work.earlier.place(self.stem, self.key)
        self.entry = kept(self.path, self.key)
        self.positions = {name: position for position, name in enumerate(self.known)}

    def _look_at(self, row: PairRow) -> tuple[dict, dict, dict, InputError | None]:
        """(its files, identity, how its clips are seen, what is wrong with them)."""
        work, files = self.work, self.work.files(row)
        hashes = {key: entry[3] for key, entry in files.items()}
        try:
            identity = clip_identity(row, pictures=work.encoders.pictures, hashes=hashes)
            if work.family.reads_pictures:
                identity["prompt"] = row.prompt
            seen = work.earlier.looked_at(row.id, files, self.size, work.sampling)
            if seen is None:
                plan = self.plans[row.id] = plan_pair(row, self.size, work.sampling)
                seen = {"fps": plan.like.fps, "view": plan.view, "span": plan.span}
                if names_pictures(files):
                    seen["unread"] = unread_pictures(plan, files)
                if work.encoders.sound is not None:
                    seen["sound"] = treatment(row.id, plan, work.encoders.sound)
            return files, identity | unread_identity(row, seen.get("unread", ())), seen, None
        except InputError as error:
            return files, {}, {}, error

    def read(self, row: PairRow) -> _Read:
        """What is to be encoded of a row; nothing of one that is bad, or whose shard stays."""
        if self.entry is not None or row.id not in self.known:
            return _Read()
        work, made, tiled = self.work, self.made_of[row.id], self.work.tiled(self.size)
        found = work.earlier.pair(row, work.files(row), self.size, made, tiled=tiled)
        heard = [sound_name(side) for side in row.clips] if made.get("sound") else []
        if found is not None and all(name in found for name in heard):
            return _Read(found)
        plan = self.plans.get(row.id) or plan_pair(row, self.size, work.sampling)
        sounds = read_sounds(row, plan, work.encoders.sound) if heard else {}
        if found is not None:
            return _Read(found, sounds=sounds)
        frames = dict(read_pair(row, plan))
        pictures = read_pictures(row, frames, plan, work.encoders.pictures)
        grid = work.family.latent_shape(*self.size)[1:]
        mask = None if row.mask is None else read_mask(row, plan, grid, work.family.lead)
        return _Read(None, frames, pictures, mask, sounds)

    def encode(self, row: PairRow, read: Future[_Read]) -> None:
        """Put the row's tensors into `pairs`: its clips by side, their sound under `sound_name`, `mask` where the row
        has one, and the conditioning by the pictures that the model is given."""
        try:
            tensors, frames, pictures, mask, sounds = read.result()
        except InputError as error:
            self._refuse(row, error)
            return
        if tensors is None and not frames:
            return
        encoders, dtype = self.work.encoders, getattr(torch, self.work.config.latent_dtype)
        if tensors is None:
            tensors = {side: encoders.encode_video(clip) for side, clip in frames.items()}
            if pictures:
                tensors |= encoders.encode_images(pictures, self.size[0], row.prompt)
            tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
            if mask is not None:
                tensors["mask"] = mask
        for side, sound in sounds.items():
            tensors[sound_name(side)] = encoders.encode_audio(sound, self.size[0]).to(dtype).contiguous()
        self.encoded += bool(frames or sounds)
        self.pairs[row.id] = tensors

    def finish(self) -> Shard:
        """Write the shard, unless it stays. Its entry has `pairs` (id, key of the tensors, hash of their bytes, the
        span) and `bad` (id, reason)."""
        entry = self.entry or write(self.path, self.key, *self._content())
        good = {pair["id"] for pair in entry["pairs"]}
        made_of = {
            name: made if name in good else {key: made[key] for key in made if key not in SEEN}
            for name, made in self.made_of.items()
        }
        unequal = sum(plan.unequal for plan in self.plans.values())
        return Shard(entry, made_of, self.encoded, unequal)

    def _content(self) -> tuple[dict[str, torch.Tensor], dict]:
        """(the file's tensors, what its entry says of them). The pairs are let go of."""
        tensors, pairs, shape, sound, names = {}, [], None, None, set()
        sides = {row.id: tuple(row.clips) for row in self.rows}
        for name, pair in self.pairs.items():
            key = str(self.positions[name])
            tensors |= {f"{key}.{part}": tensor for part, tensor in pair.items()}
            beside = {f"sha256_{side}": self.known[name][side] for side in sides[name]}
            if "mask" in pair:
                beside["mask_share"] = pair["mask"].float().mean().item()
            shape = shape or list(pair[sides[name][0]].shape)
            heard = {side: sound_name(side) for side in sides[name] if sound_name(side) in pair}
            if self.work.encoders.sound is not None:
                beside["sound"] = bool(heard)
            if heard:
                sound = sound or list(pair[heard[sides[name][0]]].shape)
            names |= {*pair} - {*sides[name], *heard.values(), "mask"}
            pairs.append({"id": name, "key": key, "sha256": tensors_sha256(pair), **beside})
        self.pairs = {}
        about = {"names": sorted(names), "size": list(self.size), "latent_shape": shape}
        about["tiled"] = bool(self.work.tiled(self.size))
        if sound is not None:
            about["stream_shapes"] = {AUDIO: sound}
        return tensors, {**about, "pairs": pairs, "bad": self.bad}

    @property
    def all_bad(self) -> list[dict]:
        """Of the rows that are bad, also those that an earlier `prepare` found so when it read them."""
        return self.bad if self.entry is None else self.entry["bad"]

    def _refuse(self, row: PairRow, error: InputError) -> None:
        if self.work.config.on_bad_data == "fail":
            raise error
        self.bad.append({"id": row.id, "reason": str(error)})
