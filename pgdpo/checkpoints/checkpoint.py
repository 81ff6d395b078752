"""Checkpoints that are whole or not there: a temporary folder, hashed files, a manifest, one rename.

Training waits until its files are on the disk. Their hashes are taken while it goes on; when every rank has its own,
the main rank writes the manifest and renames the folder. Until then the checkpoint before it is the newest.

A folder holds `weights-*`, `optimizer-*` and, where a run has them, `extra-*` (safetensors, whole named tensors in
fp32, which any number of ranks and any ZeRO stage takes back), `state.json` and `manifest.json`. No file is code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.checkpoints import optimizer_state
from pgdpo.checkpoints.best import best_step
from pgdpo.checkpoints.events import log_event
from pgdpo.checkpoints.published import (
    STATE,
    at_step,
    checkpoints_of,
    damaged_step,
    find_damage,
    prune,
    publish,
    read_state,
    report_damage,
    share_of,
    sizes_of,
    temporary_folder,
)
from pgdpo.checkpoints.shards import HashedFiles, ShardReader, ShardWriter, SharedReader
from pgdpo.messages.console import is_main_rank, say
from pgdpo.messages.errors import InputError
from pgdpo.ranks import agreement

HEADROOM = 1.2  # of a save's estimated bytes must be free before it begins

Named = Iterable[tuple[str, torch.Tensor]]


class Checkpoints:
    """The checkpoints of one run, written and read by all ranks together.

        checkpoints = Checkpoints(run_dir, keep=2)
        checkpoints.save(engine, step, {"objective_state": {...}}, extra=ema_tensors)
        path = checkpoints.finish()         # now it is published
        path = checkpoints.newest()
        state = checkpoints.load(engine, path)

    `extra`, a function that returns (name, tensor) pairs, adds tensors of other parts (a moving reference): whole
    on every rank, in the same order on all; they may be gathered as they are asked for. `load` hands them back.
    """

    def __init__(
        self, run_dir: Path, *, keep: int, every: int | None = None, best: str | None = None
    ) -> None:
        """`keep` newest ones stay, multiples of `every`, and the best by the held-out figure `best`."""
        self.run_dir, self.keep, self.every, self.best = run_dir, keep, every, best
        self._valid: list[Path] = []  # read back and found whole
        self._last: Path | None = None
        self._last_bytes = 0
        self._group = agreement.background_group()
        self._thread = ThreadPoolExecutor(1)
        self._publication: Future[Path | None] | None = None

    def save(
        self,
        engine: deepspeed.DeepSpeedEngine,
        step: int,
        state: dict,
        *,
        extra: Callable[[], Named] = dict().items,
    ) -> None:
        """Write one checkpoint; a thread publishes it and removes older ones behind it. Every rank must call it.

        It waits for the save before, then until all ranks' files are on the disk. Where the disk is too full, the
        checkpoint is skipped: the earlier ones are untouched, the partial files gone, the event logged. Raises
        agreement.RankError on all ranks if this save or the one before failed on one for another reason.
        """
        self.finish()
        self._last = None
        parts = {
            "weights": lambda: optimizer_state.weights(engine),
            "optimizer": lambda: optimizer_state.moments(engine),
            "extra": extra,
        }
        if not self._has_room(max(optimizer_state.state_bytes(engine), self._last_bytes), step):
            return
        state = {"step": step, "world_size": dist.get_world_size(), **state}
        folder = None
        try:
            with agreement.together(f"step {step}: making a checkpoint's folder"):
                folder = temporary_folder(self.run_dir, step) if is_main_rank() else None
            folder = agreement.from_main(folder)
            files = self._write(folder, parts, state)
        except agreement.RankError as error:
            self._give_up(folder, step, error)
            return
        self._publication = self._thread.submit(self._publish, files, step)

    def finish(self) -> Path | None:
        """Wait until the last save is published and older ones are removed. Every rank must call it.

        Returns the newest checkpoint, None where the last one was skipped. Raises agreement.RankError on all ranks
        if publishing it failed on one.
        """
        if self._publication is not None:
            publication, self._publication = self._publication, None
            self._last = publication.result()
        return self._last

    def close(self) -> None:
        """The same at the end of a run, whatever ended it and on whichever ranks: what fails here is only said."""
        try:
            self.finish()
        except Exception as error:
            say(f"[yellow]the last checkpoint is not published[/]: {error}")

    def newest(self, *, fallback: bool = True, step: int | None = None) -> Path | None:
        """The newest checkpoint that is whole, on all ranks, which share the hashing; damaged ones are named.

        `step`: that of this step alone. Raises InputError if it isn't there or damaged, and instead of passing a
        damaged one over where `fallback` is off.
        """
        self.finish()
        found = checkpoints_of(self.run_dir) if step is None else [at_step(self.run_dir, step)]
        for path in reversed(agreement.from_main(found)):
            found = agreement.shared(lambda rank, ranks, path=path: find_damage(path, rank=rank, ranks=ranks))
            damage = next((text for text in found if text is not None), None)
            if damage is None:
                self._valid.append(path)
                self._last = path
                return path
            if step is not None:
                raise damaged_step(path, damage)
            report_damage(path, damage, fallback)
            log_event(self.run_dir, 0, "damaged checkpoint", f"{path}: {damage}")
        return None

    def load(self, engine: deepspeed.DeepSpeedEngine, path: Path) -> tuple[dict, Mapping[str, torch.Tensor]]:
        """Put a checkpoint that `newest` found whole into the engine: any stage, any number of ranks.

        Each tensor is read by the rank that hashed its file, and sent to the others. Returns (its state: `step`,
        `objective_state`, ...; the extra tensors, which all ranks must ask for alike). Raises InputError if it is of
        another model.
        """
        ranks = dist.get_world_size()
        owners = {name: rank for rank in range(ranks) for name in share_of(sizes_of(path), rank, ranks)}
        weights, moments, extra = (
            SharedReader(ShardReader(path, kind), owners, engine.device)
            for kind in ("weights", "optimizer", "extra")
        )
        wanted = {name: _shape(p) for name, p in optimizer_state.trained_parameters(engine).items()}
        check_shapes(path, wanted, {name: tuple(weights.like(name).shape) for name in weights})
        optimizer_state.restore(engine, weights, moments)
        return read_state(path), extra

    def _write(self, folder: Path, parts: dict[str, Callable[[], Named]], state: dict) -> HashedFiles:
        """All ranks' files. Gathering goes on after a failed write: other ranks wait in it."""
        files = HashedFiles(folder)
        for kind, tensors in parts.items():
            writer = ShardWriter(files, kind)
            for name, tensor in tensors():
                writer.add(name, tensor)
            writer.close()
        with agreement.together(f"step {state['step']}: writing a checkpoint"):
            if is_main_rank():
                files.add(STATE, [(json.dumps(state, indent=1) + "\n").encode()])
            files.written()
        return files

    def _publish(self, files: HashedFiles, step: int) -> Path | None:
        """The thread's part, on all ranks; their threads meet in a group of their own. Returns the folder."""
        path = None
        try:
            with agreement.together(f"step {step}: hashing a checkpoint", self._group):
                mine = files.hashes()
            everyone = agreement.gather(mine, self._group)
            hashes = {name: entry for entries in everyone for name, entry in entries.items()}
            with agreement.together(f"step {step}: publishing a checkpoint", self._group):
                if is_main_rank():
                    _check_seen(files.folder, hashes)
                    path = publish(files.folder, hashes)
            path = agreement.from_main(path, self._group)
        except agreement.RankError as error:
            self._give_up(files.folder, step, error)
            return None
        self._last_bytes = sum(entry["bytes"] for entry in hashes.values())
        if is_main_rank():
            self._prune()
        return path

    def _give_up(self, folder: Path | None, step: int, error: agreement.RankError) -> None:
        """Remove what was written of a checkpoint. Raises the error unless it is a full disk."""
        if folder is not None and is_main_rank():
            shutil.rmtree(folder, ignore_errors=True)
        if not error.out_of_space:
            raise error
        self._skip(step, str(error))

    def _has_room(self, estimate: int, step: int) -> bool:
        free = shutil.disk_usage(self.run_dir).free if is_main_rank() else 0
        free = agreement.from_main(free)
        if free >= HEADROOM * estimate:
            return True
        need = f"a checkpoint takes {estimate:,}: {HEADROOM} times that must be free"
        self._skip(step, f"{self.run_dir}: {free:,} bytes are free, {need}")
        return False

    def _skip(self, step: int, reason: str) -> None:
        say(
            f": {reason}; make room before the next",
            first=f"the checkpoint of step {step} is skipped, the run goes on",
        )
        log_event(self.run_dir, step, "checkpoint skipped", reason)

    def _prune(self) -> None:
        try:
            best, known = best_step(self.run_dir, self.best), tuple(self._valid)
            self._valid = prune(self.run_dir, self.keep, every=self.every, best=best, known_valid=known)
        except OSError as error:  # removal can wait for the next save
            say("", first=f"older checkpoints could not be removed: {error}")


def check_shapes(path: Path, wanted: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    """Raises InputError naming the first tensor that a checkpoint holds otherwise than this model."""
    different = sorted(set(wanted.items()) ^ set(found.items()))
    if different:
        name = different[0][0]
        raise InputError(
            f"{path}: `{name}` is {found.get(name, 'not there')}, this configuration's model has "
            f"{wanted.get(name, 'no such tensor')}: it is a checkpoint of another model; change model.* back"
        )


def _check_seen(folder: Path, files: Iterable[str]) -> None:
    """Raises InputError naming the first file that another rank wrote elsewhere."""
    lost = [name for name in files if not (folder / name).is_file()]
    if lost:
        raise InputError(
            f"{folder / lost[0]}: written by another rank and not to be seen here: output_dir must be on a file "
            "system that all nodes share"
        )


def _shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
