"""Checkpoints that are whole or not there: a temporary folder, hashed files, a manifest, one rename.

A folder holds `weights-*`, `optimizer-*` and, where a run has them, `extra-*` (safetensors, whole named tensors in
fp32, which any number of ranks and any ZeRO stage takes back), `state.json` and `manifest.json`. No file is code.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.console import is_main_rank, say
from pgdpo.data import bounded
from pgdpo.errors import InputError
from pgdpo.training import agreement, optimizer_state
from pgdpo.training.events import log_event
from pgdpo.training.published import (
    checkpoints_of,
    find_damage,
    prune,
    publish,
    report_damage,
    temporary_folder,
)
from pgdpo.training.shards import ShardReader, ShardWriter, write_hashed

STATE = "state.json"
HEADROOM = 1.2  # of a save's estimated bytes must be free before it begins

Named = Iterable[tuple[str, torch.Tensor]]


class Checkpoints:
    """The checkpoints of one run, written and read by all ranks together.

        checkpoints = Checkpoints(run_dir, keep=2)
        checkpoints.save(engine, step, {"objective_state": {...}}, extra=ema_tensors)
        path = checkpoints.newest()
        state = checkpoints.load(engine, path)

    `extra`, a function that returns (name, tensor) pairs, adds tensors of other parts (a moving reference): whole
    on every rank, in the same order on all; they may be gathered as they are asked for. `load` hands them back.
    """

    def __init__(self, run_dir: Path, *, keep: int) -> None:
        self.run_dir, self.keep = run_dir, keep
        self._valid: list[Path] = []  # read back and found whole
        self._pruning: threading.Thread | None = None
        self._last_bytes = 0

    def save(
        self,
        engine: deepspeed.DeepSpeedEngine,
        step: int,
        state: dict,
        *,
        extra: Callable[[], Named] = dict().items,
    ) -> Path | None:
        """Write and publish one checkpoint, then remove older ones behind valid ones. Every rank must call it.

        Returns its folder; None where the disk is too full for it: the earlier ones are untouched, the partial files
        gone, the event logged. Raises agreement.RankError on all ranks if it failed on one for another reason.
        """
        self.finish()
        parts = {
            "weights": lambda: optimizer_state.weights(engine),
            "optimizer": lambda: optimizer_state.moments(engine),
            "extra": extra,
        }
        if not self._has_room(max(optimizer_state.state_bytes(engine), self._last_bytes), step):
            return None
        folder = None
        try:
            with agreement.together(f"step {step}: making a checkpoint's folder"):
                folder = temporary_folder(self.run_dir, step) if is_main_rank() else None
            folder = agreement.from_main(folder)
            files = self._write_parts(folder, parts, step)
            path = self._publish(folder, files, {"step": step, "world_size": dist.get_world_size(), **state})
        except agreement.RankError as error:
            if folder is not None and is_main_rank():
                shutil.rmtree(folder, ignore_errors=True)
            if not error.out_of_space:
                raise
            self._skip(step, str(error))
            return None
        self._last_bytes = sum(entry["bytes"] for entry in files.values())
        if is_main_rank():
            self._pruning = threading.Thread(target=self._prune, daemon=True)
            self._pruning.start()
        return path

    def finish(self) -> None:
        """Wait for what goes on beside the training: reading the newest checkpoint back, removing older ones."""
        if self._pruning is not None:
            self._pruning.join()
            self._pruning = None

    def newest(self, *, fallback: bool = True) -> Path | None:
        """The newest checkpoint that is whole, on all ranks, which share the hashing; damaged ones are named.

        Raises InputError instead of passing a damaged one over where `fallback` is off.
        """
        for path in reversed(agreement.from_main(checkpoints_of(self.run_dir))):
            found = agreement.gather(find_damage(path, part=dist.get_rank(), parts=dist.get_world_size()))
            damage = next((text for text in found if text is not None), None)
            if damage is None:
                self._valid.append(path)
                return path
            report_damage(path, damage, fallback)
            log_event(self.run_dir, 0, "damaged checkpoint", f"{path}: {damage}")
        return None

    def load(self, engine: deepspeed.DeepSpeedEngine, path: Path) -> tuple[dict, Mapping[str, torch.Tensor]]:
        """Put a checkpoint that `newest` found whole into the engine: any stage, any number of ranks.

        Returns (its state: `step`, `objective_state`, ...; the extra tensors). Raises InputError if it is of another
        model.
        """
        weights, moments = ShardReader(path, "weights"), ShardReader(path, "optimizer")
        wanted = {name: _shape(p) for name, p in optimizer_state.trained_parameters(engine).items()}
        check_shapes(path, wanted, {name: tuple(weights[name].shape) for name in weights if name in wanted})
        optimizer_state.restore(engine, weights, moments)
        return read_state(path), ShardReader(path, "extra")

    def _write_parts(self, folder: Path, parts: dict[str, Callable[[], Named]], step: int) -> dict[str, dict]:
        """All ranks' files with their hashes. Gathering goes on after a failed write: other ranks wait in it."""
        writers = []
        for kind, tensors in parts.items():
            writer = ShardWriter(folder, kind)
            for name, tensor in tensors():
                writer.add(name, tensor)
            writers.append(writer)
        mine: dict[str, dict] = {}
        with agreement.together(f"step {step}: writing a checkpoint"):
            for writer in writers:
                mine |= writer.close()
        return {name: entry for entries in agreement.gather(mine) for name, entry in entries.items()}

    def _publish(self, folder: Path, files: dict[str, dict], state: dict) -> Path:
        path = None
        with agreement.together(f"step {state['step']}: publishing a checkpoint"):
            if is_main_rank():
                lost = [name for name in files if not (folder / name).is_file()]
                if lost:
                    raise InputError(
                        f"{folder / lost[0]}: written by another rank and not to be seen here: output_dir must be on a "
                        "file system that all nodes share"
                    )
                text = json.dumps(state, indent=1) + "\n"
                files = {**files, STATE: write_hashed(folder / STATE, [text.encode()])}
                path = publish(folder, files)
        return agreement.from_main(path)

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
            self._valid = prune(self.run_dir, self.keep, known_valid=tuple(self._valid))
        except OSError as error:  # removal can wait for the next save
            say("", first=f"older checkpoints could not be removed: {error}")


def read_state(path: Path) -> dict:
    """A checkpoint's `state.json`. Raises InputError if it is no JSON object."""
    try:
        state = bounded.parse_json(bounded.read_text(path / STATE, bounded.LARGEST_JSON))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path / STATE}: cannot be read as JSON ({error}): fall back to an earlier one"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path / STATE}: holds {type(state).__name__}, expected a JSON object")
    return state


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The trained weights of a checkpoint, fp32 on the CPU: peft's names for an adapter, else the module's."""
    return dict(ShardReader(path, "weights"))


def check_shapes(path: Path, wanted: Mapping[str, tuple], found: Mapping[str, tuple]) -> None:
    """Raises InputError naming the first tensor that a checkpoint holds otherwise than this model."""
    different = sorted(set(wanted.items()) ^ set(found.items()))
    if different:
        name = different[0][0]
        raise InputError(
            f"{path}: `{name}` is {found.get(name, 'not there')}, this configuration's model has "
            f"{wanted.get(name, 'no such tensor')}: it is a checkpoint of another model; change model.* back"
        )


def _shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
