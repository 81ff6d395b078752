"""The clips of prepared data: shards of a fixed number of pairs, each made by the rank whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pgdpo.console import progress_bar
from pgdpo.data.bad import check_bad
from pgdpo.data.buckets import Size, size_name
from pgdpo.data.clips import PairPlan, Sampling, clip_identity, first_picture, plan_pair, read_pair
from pgdpo.data.earlier import Earlier
from pgdpo.data.made_of import FileEntry, Hashes
from pgdpo.data.manifest import PairRow
from pgdpo.data.masks import read_mask
from pgdpo.data.ranks import Ranks
from pgdpo.data.schema import SIDES
from pgdpo.data.shards import content_key, tensors_sha256, write_once
from pgdpo.errors import InputError
from pgdpo.models.protocols import Encoders
from pgdpo.settings import DataConfig

LOOKS = 4  # clips that are looked at at a time
SEEN = ("fps", "view", "span")  # what a record says of how a good pair's clips were seen


@dataclass(frozen=True)
class Work:
    """What every file of a folder is made with."""

    folder: Path
    config: DataConfig
    sampling: Sampling
    encoders: Encoders
    ranks: Ranks
    earlier: Earlier
    hashes: Hashes

    def files(self, row: PairRow) -> dict[str, FileEntry]:
        return self.hashes.files(row, with_image=self.encoders.needs_image)

    def tiled(self, size: Size) -> bool | None:
        """Whether clips of this size are encoded in tiles; None where that is the same as whole."""
        tiling = self.encoders.tiling
        return tiling.of(size, "encoded") if tiling is not None and tiling.cuts(size, "encoded") else None

    def share(self) -> str:
        """Which part of the work a progress bar is of."""
        return f" (rank 0's share of {self.ranks.count})" if self.ranks.count > 1 else ""


class Shard(NamedTuple):
    """A shard's entry, what its rows' files are (bad ones' too) and how they were seen, and of its pairs those that
    were encoded, and those that were looked at and have clips of two lengths."""

    entry: dict
    made_of: dict[str, dict[str, Any]]
    encoded: int
    unequal: int


def prepare_shards(rows: Sequence[PairRow], buckets: Sequence[Sequence[PairRow]], work: Work) -> list[Shard]:
    """All shards in order, on every rank. `rows`: all that there were; `buckets`: those of each size."""
    config, ranks = work.config, work.ranks
    jobs = [
        (size, number, members[first : first + config.pairs_per_shard])
        for size, members in zip(config.sizes, buckets, strict=True)
        for number, first in enumerate(range(0, len(members), config.pairs_per_shard))
    ]
    mine = range(ranks.rank, len(jobs), ranks.count)
    done, bad = {}, {}
    with progress_bar(f"encode clips{work.share()}", total=sum(len(jobs[n][2]) for n in mine)) as bar:
        for job in mine:
            size, number, group = jobs[job]
            making = _Making(work, size, group, bar)
            done[job] = making.shard(f"shard-{size_name(size)}-{number:05d}")
            bad |= {entry["id"]: entry["reason"] for entry in done[job].entry["bad"]}
            check_bad(bad, len(rows), config.on_bad_data, str(work.folder))
    return in_order(ranks.gather(done))


def in_order(parts: Sequence[dict[int, Any]]) -> list:
    """What the ranks did, by number."""
    return [entry for _, entry in sorted(item for part in parts for item in part.items())]


@dataclass
class _Making:
    """One shard in the making. `made_of`: what a record says of each row; `known`: identity and view of the good ones;
    `plans`: of those whose clips were looked at now."""

    work: Work
    size: Size
    rows: Sequence[PairRow]
    bar: Any
    made_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: dict[str, dict] = field(default_factory=dict)
    plans: dict[str, PairPlan] = field(default_factory=dict)
    bad: list[dict] = field(default_factory=list)
    encoded: int = 0

    def shard(self, stem: str) -> Shard:
        """The entry has `pairs` (id, key of the tensors, hash of their bytes, the span) and `bad` (id, reason)."""
        work, done = self.work, 0
        self._look()
        # Files of earlier versions, which encoded in tiles, keep their key.
        whole = ["whole"] if work.tiled(self.size) is False else []
        known = list(self.known.items())
        key = content_key(
            work.encoders.fingerprint, self.size, work.config.latent_dtype, known, self.bad, *whole
        )

        def encode() -> tuple[dict[str, torch.Tensor], dict]:
            nonlocal done
            done = len(self.rows)
            return self._encode()

        entry = write_once(work.earlier.place(stem, key), key, encode)
        self.bar.advance(len(self.rows) - done)
        good = {pair["id"] for pair in entry["pairs"]}
        made_of = {
            name: made if name in good else {key: made[key] for key in made if key not in SEEN}
            for name, made in self.made_of.items()
        }
        unequal = sum(plan.chosen.num_frames != plan.rejected.num_frames for plan in self.plans.values())
        return Shard(entry, made_of, self.encoded, unequal)

    def _look(self) -> None:
        """Fill `made_of` and, but for rows that are bad, `known`; clips that were seen before are not opened."""
        with ThreadPoolExecutor(LOOKS) as pool:
            for row, found in zip(self.rows, pool.map(self._look_at, self.rows), strict=True):
                files, identity, seen, error = found
                self.made_of[row.id] = {**files, **seen}
                if error is not None:
                    self._refuse(row, error)
                    continue
                self.known[row.id] = identity | ({"view": seen["view"]} if seen["view"] else {})

    def _look_at(self, row: PairRow) -> tuple[dict, dict, dict, InputError | None]:
        """(its files, identity, how its clips are seen, what is wrong with them)."""
        work, files = self.work, self.work.files(row)
        hashes = {key: entry[3] for key, entry in files.items()}
        try:
            identity = clip_identity(row, with_image=work.encoders.needs_image, hashes=hashes)
            seen = work.earlier.looked_at(row.id, files, self.size, work.sampling)
            if seen is None:
                plan = self.plans[row.id] = plan_pair(row, self.size, work.sampling)
                seen = {"fps": plan.chosen.fps, "view": plan.view, "span": plan.span}
            return files, identity, seen, None
        except InputError as error:
            return files, {}, {}, error

    def _encode(self) -> tuple[dict[str, torch.Tensor], dict]:
        """One pair's clips are decoded while the one before is encoded."""
        tensors, pairs = {}, []
        good = [row for row in self.rows if row.id in self.known]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, good[0]) if good else None
            for position, row in enumerate(good):
                read, more = ahead, good[position + 1 : position + 2]
                ahead = reader.submit(self._read, more[0]) if more else None
                try:
                    pair = self._pair(row, *read.result())
                except InputError as error:
                    self._refuse(row, error)
                    continue
                finally:
                    del read  # with its frames
                    self.bar.advance()
                tensors |= {f"{position}.{name}": tensor for name, tensor in pair.items()}
                beside = {f"sha256_{side}": self.known[row.id][side] for side in SIDES}
                if "mask" in pair:
                    beside["mask_share"] = pair["mask"].float().mean().item()
                pairs.append({"id": row.id, "key": str(position), "sha256": tensors_sha256(pair), **beside})
        names = {name.split(".", 1)[1] for name in tensors} - {*SIDES, "mask"}
        shape = next((list(t.shape) for name, t in tensors.items() if name.endswith(".chosen")), None)
        about = {"names": sorted(names), "size": list(self.size), "latent_shape": shape}
        about["tiled"] = bool(self.work.tiled(self.size))
        return tensors, {**about, "pairs": pairs, "bad": self.bad}

    def _read(
        self, row: PairRow
    ) -> tuple[dict[str, torch.Tensor] | None, PairPlan | None, dict[str, np.ndarray]]:
        """(the tensors, where they are taken over from before; else the plan, and both clips' frames)."""
        view = self.made_of[row.id]["view"]
        tiled = self.work.tiled(self.size)
        found = self.work.earlier.pair(row, self.work.files(row), self.size, view, tiled=tiled)
        if found is not None:
            return found, None, {}
        plan = self.plans.get(row.id) or plan_pair(row, self.size, self.work.sampling)
        return None, plan, dict(read_pair(row, plan))

    def _pair(
        self,
        row: PairRow,
        found: dict[str, torch.Tensor] | None,
        plan: PairPlan | None,
        clips: dict[str, np.ndarray],
    ) -> dict[str, torch.Tensor]:
        """`chosen`, `rejected`, `mask` where the row has one and, where the model wants it, the conditioning by the
        picture that both start from."""
        if found is not None:
            return found
        encoders, dtype = self.work.encoders, getattr(torch, self.work.config.latent_dtype)
        tensors = {}
        for side, frames in clips.items():
            tensors[side] = encoders.encode_video(frames).to(dtype).contiguous()
            if encoders.needs_image and side == "chosen":
                picture = first_picture(row, frames, self.size)
                for name, tensor in encoders.encode_image(picture, self.size[0]).items():
                    tensors[name] = tensor.to(dtype).contiguous()
        if row.mask is not None:
            tensors["mask"] = read_mask(row, plan, tensors["chosen"].shape[1:])
        self.encoded += 1
        return tensors

    def _refuse(self, row: PairRow, error: InputError) -> None:
        if self.work.config.on_bad_data == "fail":
            raise error
        self.bad.append({"id": row.id, "reason": str(error)})
