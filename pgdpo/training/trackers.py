"""Where a run's numbers go: `metrics.jsonl` and TensorBoard always, wandb, trackio or swanlab where asked for.

A tracker that fails is named in `events.jsonl` and left out from then on; it never stops the run.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from pgdpo.checkpoints.best import HELD_OUT
from pgdpo.checkpoints.events import log_event
from pgdpo.config import Config
from pgdpo.files.atomic import atomic_path, read_json_lines
from pgdpo.files.reach import answers
from pgdpo.messages.console import is_main_rank, say
from pgdpo.messages.errors import InputError
from pgdpo.ranks.agreement import is_out_of_space
from pgdpo.training.panels import PARTS, Panel, panels_of

METRICS = "metrics.jsonl"
SWANLAB = "https://api.swanlab.cn"


class Tracker(Protocol):
    def log(self, step: int, values: dict) -> None:
        """The step's metrics; `buckets` holds a dict per timestep bucket, `parts` per part, `sources` per manifest."""

    def held_out(self, step: int, figures: dict) -> None:
        """Figures of held-out pairs after a step: {name: {value, low, high}}, `buckets` with a dict of such each."""

    def clip(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """A validation clip, uint8 `[F, H, W, 3]`."""

    def close(self) -> None: ...


class Trackers:
    """All of a run's trackers behind one; only the main rank's do anything.

    `start`: steps that are done, `looked`: the last whose held-out figures count (-1: none); rows behind them, of a run
    that stopped, are dropped.
    """

    def __init__(self, config: Config, *, start: int, looked: int = -1) -> None:
        self._run_dir = config.run_dir
        self._open: dict[str, Tracker] = {}
        makers = {"metrics.jsonl": partial(Jsonl, looked=looked), "tensorboard": TensorBoard}
        for name in config.train.trackers:
            makers[name] = lambda config, start, name=name: Service(name, config)
        for name, make in makers.items() if is_main_rank() else ():
            self._try(
                name, start, lambda name=name, make=make: self._open.update({name: make(config, start)})
            )

    def log(self, step: int, values: dict) -> None:
        self._each(step, lambda tracker: tracker.log(step, values))

    def held_out(self, step: int, figures: dict) -> None:
        self._each(step, lambda tracker: tracker.held_out(step, figures))

    def clip(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        self._each(step, lambda tracker: tracker.clip(step, name, frames, fps))

    def close(self) -> None:
        self._each(0, lambda tracker: tracker.close())

    def _each(self, step: int, use) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, step, lambda tracker=tracker: use(tracker))

    def _try(self, name: str, step: int, act) -> None:
        try:
            act()
        except Exception as error:  # a service may fail in any way; the run is worth more than its curve
            self._open.pop(name, None)
            message = f"{name} failed and is left out from here on: {type(error).__name__}: {error}"
            say("", first=message)
            log_event(self._run_dir, step, "tracker", message)


class Jsonl:
    """`metrics.jsonl`, one line a step, and `held_out.jsonl`, one line a look at held-out pairs."""

    def __init__(self, config: Config, start: int, *, looked: int = -1) -> None:
        last = {METRICS: start}
        if config.evaluate.every is not None or (config.run_dir / HELD_OUT).is_file():
            last[HELD_OUT] = looked
        self._lines = {name: Lines(config.run_dir / name, step) for name, step in last.items()}

    def log(self, step: int, values: dict) -> None:
        self._lines[METRICS].add({"step": step, **values})

    def held_out(self, step: int, figures: dict) -> None:
        self._lines[HELD_OUT].add({"step": step, **figures})

    def clip(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Clips are files of their own."""

    def close(self) -> None:
        for lines in self._lines.values():
            lines.close()


class Lines:
    """A file of JSON lines; those of steps after `last` are dropped. What a full disk does not take waits, and is
    written as soon as it does."""

    def __init__(self, path: Path, last: int) -> None:
        self._name = path.name
        kept = [row for row in read_json_lines(path) if row["step"] <= last]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def add(self, row: dict) -> None:
        said = bool(self._waiting)
        self._waiting += json.dumps(row).encode() + b"\n"
        try:
            while self._waiting:  # a disk that is nearly full takes a part
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not is_out_of_space(error):
                raise
            if not said:
                say(f"after step {row['step']}: {error}; its lines wait for room", first=f"{self._name}: ")

    def close(self) -> None:
        self._file.close()
        if self._waiting:
            raise OSError(f"the last {len(self._waiting.splitlines())} lines of {self._name} found no room")


class TensorBoard:
    def __init__(self, config: Config, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(config.run_dir / "tensorboard"), purge_step=start + 1)
        panels = panels_of(config.model.streams)
        self._board.add_custom_scalars({"pgdpo": {panel.title: _together(panel) for panel in panels}})

    def log(self, step: int, values: dict) -> None:
        for name, value in scalars(values):
            self._board.add_scalar(name, value, step)

    def held_out(self, step: int, figures: dict) -> None:
        self.log(step, {"held_out": figures})

    def clip(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """As an animated GIF, which TensorBoard's image tab plays."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        first, *others = [Image.fromarray(frame) for frame in frames]
        file = io.BytesIO()
        first.save(file, "GIF", save_all=True, append_images=others, duration=1000 / fps, loop=0)
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.getvalue())
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._board._get_file_writer().add_summary(summary, step)  # add_video would need moviepy

    def close(self) -> None:
        self._board.close()


def _together(panel: Panel) -> list:
    """One chart of TensorBoard's custom scalars: a panel's lines, each with its held-out figure; tags are patterns."""
    names = [
        name for line in panel.lines for name in (line.name, line.held_out and f"held_out/{line.held_out}")
    ]
    return ["Multiline", [f"^{name}$" for name in names if name]]


class Service:
    """wandb, trackio or swanlab, which share `init`, `log` and `finish`.

    Where wandb's or swanlab's server does not answer they go on in their offline mode, in files that can be sent later;
    a mode that the user set is theirs. trackio keeps its runs on this machine.
    """

    def __init__(self, package: str, config: Config) -> None:
        self._module = importlib.import_module(package)
        mode = (
            {}
            if package == "trackio" or f"{package.upper()}_MODE" in os.environ
            else _mode(package, self._module)
        )
        self._module.init(
            project=config.train.tracker_project,
            name=config.run_name,
            config=config.model_dump(mode="json"),
            **mode,
        )

    def log(self, step: int, values: dict) -> None:
        self._module.log(dict(scalars(values)), step=step)

    def held_out(self, step: int, figures: dict) -> None:
        self.log(step, {"held_out": figures})

    def clip(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Clips stay on this machine: beside the checkpoints and in TensorBoard."""

    def close(self) -> None:
        self._module.finish()


def _mode(package: str, module: ModuleType) -> dict[str, str]:
    """`mode: offline` where the server does not answer, which is said: `init` would ask it for minutes."""
    if package == "wandb":
        address, later = module.Settings().base_url, "`wandb sync` on the folder that it names sends it later"
    else:
        address, later = SWANLAB, "`swanlab sync` sends it later"
    if answers(address):
        return {}
    say(f": {address} does not answer: the run is logged on this machine; {later}", first=package)
    return {"mode": "offline"}


def check_trackers(config: Config) -> None:
    """Raises InputError, before any weight is loaded, if a tracker's package is not installed."""
    for name in config.train.trackers:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"train.trackers names {name}: it is not installed: pip install {name}, or leave it out"
            )


def scalars(values: dict) -> Iterator[tuple[str, float]]:
    """(name, number) of a step's metrics; those of a timestep bucket as `<bucket>/<name>`, of a part of a sample and of
    a manifest as `parts/<its name>/<name>` and `sources/<its name>/<name>`: these may be called as a metric is. None is
    no number."""
    for name, value in values.items():
        if name in ("buckets", "sources", PARTS):
            above = "" if name == "buckets" else f"{name}/"
            for part, row in value.items():
                yield from ((f"{above}{part}/{key}", number) for key, number in scalars(row))
        elif name == "held_out":
            yield from ((f"{name}/{key}", number) for key, number in scalars(value))
        elif isinstance(value, dict):  # a figure with its interval
            yield from (
                (name if key == "value" else f"{name}/{key}", number) for key, number in scalars(value)
            )
        elif isinstance(value, (int, float)):
            yield name, value
