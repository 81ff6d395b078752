"""`pgdpo reference`: the reference's errors on the draws that a cached run will make, computed once.

Rows are spread over the ranks, written as they come and found again by (pair, draw): a later call, on any number of
ranks, computes what is missing alone.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs, pair_hash
from pgdpo.data.visits.loading import load_batches
from pgdpo.engine.parallel import Ranks
from pgdpo.engine.policy import open_ranks
from pgdpo.guards.watch import Watch
from pgdpo.messages.console import is_main_rank, progress_bar, say
from pgdpo.messages.errors import Stopped
from pgdpo.messages.progress import moved
from pgdpo.models import open_family
from pgdpo.models.family import Family
from pgdpo.ranks import agreement
from pgdpo.reference import Forward, frame_sums
from pgdpo.reference.store import ErrorRows, create, folder_of, joined, read_rows, write_rows
from pgdpo.rows.schema import sides_of
from pgdpo.sampling import share_of
from pgdpo.training.noising import draw_sample
from pgdpo.training.opening import open_pairs, require_images
from pgdpo.training.references import errors_key, frozen_copy, reference_folder
from pgdpo.training.task.checks import check_shapes

WRITE_SECONDS = 60.0  # an interrupted call loses no more


def compute_errors(config: Config) -> Path:
    """Errors for `train.cached_draws` draws of every training pair -> a folder of shards, which is returned.

    Raises Stopped on all ranks if one got a signal: what was found is written.
    """
    ranks = open_ranks(config, clips=False)
    try:
        with Watch(config.run_dir, config.train.watchdog_seconds) as watch:
            return _compute(config, ranks, watch)
    except Stopped as stop:
        text = f"{stop}; what was computed is written: go on with the same command"
        raise Stopped(text, stop.code) from stop


def _compute(config: Config, ranks: Ranks, watch: Watch) -> Path:
    data = open_pairs(config, "train")
    family = open_family(config.model)
    require_images(data, family)
    key = agreement.on_main(lambda: errors_key(config, family, data))
    folder = folder_of(reference_folder(config), key)
    rows = joined(agreement.shared(lambda rank, ranks: read_rows(folder, rank, ranks)))
    missing = _missing(data, config.train.cached_draws, rows)
    total = len(data) * config.train.cached_draws
    say(
        f"reference errors: {total - len(missing)} of {total} are there, {len(missing)} to compute -> {folder}"
    )
    if not missing:
        return folder
    check_shapes(config, family, data)
    forward, _ = frozen_copy(config, family, ranks, max(data.group_sizes))
    if is_main_rank():
        create(reference_folder(config), key)
    agreement.meet()
    size = config.train.micro_batch_groups
    mine = _share(list(data.batches(missing, size)), size, ranks)
    with (
        contextlib.closing(_Shards(folder, data, ranks)) as shards,
        progress_bar(f"reference errors, {dist.get_world_size()} rank(s)", total=len(mine)) as bar,
    ):
        for number, batch in enumerate(load_batches(data, mine, workers=config.data.workers), start=1):
            watch.signals.check()
            with watch.blocks():
                rows = _errors(batch, config, family, forward, ranks.device)
            shards.add(rows)
            bar.advance()
            moved(f"batch {number} of {len(mine)}")
    agreement.meet()
    return folder


@torch.no_grad()
def _errors(batch: dict, config: Config, family: Family, forward: Forward, device: torch.device) -> ErrorRows:
    sample = draw_sample(batch, config, family, device, cached=True)
    pred = forward(sample.noisy, sample.each, sample.conditioning)
    sums = frame_sums(pred, sample.target, sample.mask, size=batch["groups"] or 2)
    return ErrorRows(batch["pair_ids"], batch["draw"], sample.sigma.cpu(), sums.cpu())


class _Shards:
    """This rank's rows, written as a shard every minute and at the end; of ranks that hold the same, one writes."""

    def __init__(self, folder: Path, data: PreparedPairs, ranks: Ranks) -> None:
        self._folder, self._writes = folder, dist.get_rank() % ranks.degree == 0
        # The sums of shorter clips, and smaller groups, are followed by zeros up to the longest of all that is
        # prepared, since other choices of its rows (data.select) add to these; a shard whose rows are all bad has no
        # shape.
        shapes = [
            [entry["latent_shape"], *entry.get("stream_shapes", {}).values()]
            for entry in data.index["shards"]
        ]
        self._frames = max(sum(shape[1] for shape in streams) for streams in shapes if streams[0])
        self._samples = max(len(sides_of(row)) for row in data.index["pairs"])
        self._found: list[ErrorRows] = []
        self._written = time.monotonic()

    def add(self, rows: ErrorRows) -> None:
        _, samples, frames = rows.sums.shape
        sums = torch.nn.functional.pad(rows.sums, (0, self._frames - frames, 0, self._samples - samples))
        self._found.append(replace(rows, sums=sums))
        if time.monotonic() - self._written > WRITE_SECONDS:
            self.close()
            self._written = time.monotonic()

    def close(self) -> None:
        """Write what was found since the last time."""
        if self._found and self._writes:
            names = vars(self._found[0])
            whole = {name: torch.cat([getattr(rows, name) for rows in self._found]) for name in names}
            write_rows(self._folder, ErrorRows(**whole))
        self._found.clear()


def _missing(data: PreparedPairs, draws: int, rows: ErrorRows | None) -> list[tuple[int, int]]:
    """(index, draw)s whose errors are not there yet."""
    done = set() if rows is None else set(rows.items())
    ids = [pair_hash(row["id"]) for row in data.rows]
    return [(i, draw) for draw in range(draws) for i, pair in enumerate(ids) if (pair, draw) not in done]


def _share(batches: list[list[tuple[int, int]]], size: int, ranks: Ranks) -> list[list[tuple[int, int]]]:
    """This rank's batches: equally many on every rank, since under ZeRO-3 all ranks run each forward together.

    All hold `size` pairs, as in training, so that they are rounded alike. What is left over is filled up with items,
    and with batches, that are computed twice.
    """
    full = [list(islice(cycle(batch), size)) for batch in batches]
    return [batch for batch, _ in share_of(full, ranks.data_rank, ranks.data_size, in_step=True)]
