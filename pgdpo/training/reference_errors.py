"""`pgdpo reference`: the reference's errors on the draws that a cached run will make, computed once.

Rows are spread over the ranks, written as they come and found again by (pair, draw): a later call, on any number of
ranks, computes what is missing alone.
"""

from __future__ import annotations

import time
from itertools import cycle, islice
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs, load_batches, pair_hash
from pgdpo.engine import engine as engines
from pgdpo.engine.blocks import each_block
from pgdpo.engine.parallel import Ranks, arrange_ranks, check_sequence_parallel
from pgdpo.engine.policy import start_ranks
from pgdpo.guards.signals import StopSignals
from pgdpo.guards.watchdog import Watchdog
from pgdpo.messages.console import is_main_rank, progress_bar, say
from pgdpo.messages.errors import Stopped
from pgdpo.messages.progress import moved
from pgdpo.models import open_family
from pgdpo.ranks import agreement
from pgdpo.reference import frame_sums
from pgdpo.reference.store import ErrorRows, create, folder_of, joined, read_rows, write_rows
from pgdpo.sampling import share_of
from pgdpo.training.noising import draw_sample
from pgdpo.training.opening import open_pairs, require_images
from pgdpo.training.references import errors_key, frozen_copy, reference_folder

WRITE_SECONDS = 60.0  # an interrupted call loses no more


def compute_errors(config: Config) -> Path:
    """Errors for `train.cached_draws` draws of every training pair -> a folder of shards, which is returned.

    Raises Stopped on all ranks if one got a signal: what was found is written.
    """
    device = start_ranks(config, clips=False)
    engines.check_deepspeed(config.train)
    try:
        with StopSignals() as signals, Watchdog(config.run_dir, config.train.watchdog_seconds, signals):
            return _compute(config, device, signals)
    except Stopped as stop:
        text = f"{stop}; what was computed is written: go on with the same command"
        raise Stopped(text, stop.code) from stop


def _compute(config: Config, device: torch.device, signals: StopSignals) -> Path:
    ranks = arrange_ranks(config.train.sequence_parallel, device)
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
    for shape in data.latent_shapes:
        check_sequence_parallel(config, family, shape)
    forward, _ = frozen_copy(config, family, ranks, device)
    if is_main_rank():
        create(reference_folder(config), key)
    agreement.meet()
    size = config.train.micro_batch_pairs
    mine = _share(list(data.batches(missing, size)), size, ranks)
    # Of all that is prepared, since other choices of its pairs (data.select) add to these rows; a shard whose pairs are
    # all bad has no shape.
    frames = max(entry["latent_shape"][1] for entry in data.index["shards"] if entry["latent_shape"])
    found: list[ErrorRows] = []
    written = time.monotonic()
    try:
        with progress_bar(f"reference errors, {dist.get_world_size()} rank(s)", total=len(mine)) as bar:
            for batch in load_batches(data, mine, workers=config.data.workers):
                signals.check()
                with each_block(signals.block):
                    found.append(_errors(batch, config, family, forward, frames, device))
                bar.advance()
                moved(f"{len(found)} batches since the last writing")
                if time.monotonic() - written > WRITE_SECONDS:
                    _write(folder, found, ranks)
                    written = time.monotonic()
    finally:
        _write(folder, found, ranks)
    agreement.meet()
    return folder


@torch.no_grad()
def _errors(batch: dict, config: Config, family, forward, frames: int, device: torch.device) -> ErrorRows:
    """`frames`: of the longest clips prepared; the sums of shorter ones are followed by zeros."""
    sample = draw_sample(batch, config, family, device, cached=True)
    pred = forward(sample.noisy, sample.both, sample.conditioning)
    sums = frame_sums(pred, sample.target, sample.mask)
    sums = torch.nn.functional.pad(sums, (0, frames - sums.shape[-1]))
    return ErrorRows(batch["pair_ids"], batch["draw"], sample.sigma.cpu(), sums.cpu())


def _write(folder: Path, found: list[ErrorRows], ranks: Ranks) -> None:
    """Write what was found since the last time as one shard; of ranks that hold the same, one does."""
    if found and dist.get_rank() % ranks.degree == 0:
        names = vars(found[0])
        write_rows(
            folder, ErrorRows(**{name: torch.cat([getattr(r, name) for r in found]) for name in names})
        )
    found.clear()


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
