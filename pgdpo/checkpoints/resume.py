"""What a resumed run may change, and the files by which a run's folder explains itself."""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

from pgdpo.checkpoints.best import HELD_OUT
from pgdpo.checkpoints.events import log_event
from pgdpo.checkpoints.published import checkpoints_of, step_of
from pgdpo.checkpoints.record import dumped, flat, is_free, settled, with_new_names
from pgdpo.config import Config
from pgdpo.config.read import covered
from pgdpo.files.atomic import atomic_path, write_json
from pgdpo.messages.console import is_main_rank, say
from pgdpo.messages.errors import InputError
from pgdpo.version import __version__

# Speak of one step, the last that they were written for.
OF_A_STEP = ("results.json", "implicit_rewards.json", "report.html")


def described(config: Config, identity: dict) -> dict:
    """What a checkpoint says of the run that wrote it. `identity`: hashes of model, data and reference."""
    return {"identity": identity, "config": config.model_dump(mode="json"), "versions": versions()}


def check_resume(path: Path, state: dict, config: Config, identity: dict, allowed: Collection[str]) -> None:
    """Print what differs from the run that wrote the checkpoint at `path`, and log what is let through.

    `allowed`: keys that may change although it falsifies the run; a section's name stands for all of it.

    Raises InputError naming the changed keys that are neither safe nor allowed, with both values.
    """
    differences = _differences(state, config, identity)
    for key, (before, now) in differences.items():
        verdict = "safe" if is_free(key, config) else "allowed" if covered(key, allowed) else "refused"
        say(f"changed since {path.name}: {key}: {before!r} -> {now!r} ({verdict})")
    refuse_changes(path, state, config, identity, allowed)
    for key, (before, now) in differences.items():
        log_event(config.run_dir, state["step"], "changed", f"{key}: {before!r} -> {now!r}")


def refuse_changes(path: Path, state: dict, config: Config, identity: dict, allowed: Collection[str]) -> None:
    """Raises as `check_resume`, and does nothing else."""
    differences = _differences(state, config, identity)
    refused = [key for key in differences if not is_free(key, config) and not covered(key, allowed)]
    if refused:
        shown = "; ".join(
            f"its {key} is {differences[key][0]!r}, this configuration's is {differences[key][1]!r}"
            for key in refused
        )
        raise InputError(
            f"{path}: {shown}: it would no longer be one run; change it back, allow it with "
            f"{' '.join(f'--allow-change {key}' for key in refused)}, or start anew with --restart or another `name`"
        )


def _differences(state: dict, config: Config, identity: dict) -> dict[str, tuple]:
    # No LoRA to start from, and nothing told that is rounded; other hashes may be newer than the record.
    none = {"init_hash": None, "told_rounded": None}
    before = none | flat(with_new_names(state["config"])) | flat(state["identity"])
    now = none | dumped(config) | flat(identity)
    given = flat(config.model_dump(mode="json", exclude_defaults=True))
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        # a key that the older version did not have is a difference where it is not at its default
        if before.get(key) != now.get(key)
        and not (key not in before and key not in given)
        and not settled(key, before.get(key), now.get(key))
    }


def remove_run(run_dir: Path) -> None:
    """Remove what an earlier run of this name left: checkpoints, logs, results. Its exports stay."""
    names = ("checkpoints", "tensorboard", "evaluations", "validation", "clips", "pairs")
    for folder in (*(run_dir / name for name in names), *run_dir.glob("set-aside-*")):
        shutil.rmtree(folder, ignore_errors=True)
    files = ("metrics.jsonl", HELD_OUT, "held_out.safetensors", "events.jsonl", "pairs.json")
    for file in (*files, *OF_A_STEP):
        (run_dir / file).unlink(missing_ok=True)


def set_aside(run_dir: Path, step: int, *, checkpoints: bool) -> Path | None:
    """Move what a run has of later steps than `step` out of the way of a run that goes on from there: results, exports,
    validation clips, a copy of the metrics and, where asked for, checkpoints. Returns the folder, None for nothing."""
    later = [path for kind in ("evaluations", "export-") for path in _later(run_dir, kind, step)]
    if checkpoints:
        later += [path for path in checkpoints_of(run_dir) if step_of(path) > step]
    card = run_dir / "export" / "README.md"
    exported = (
        re.search(r"\| steps \| (\d+) of", card.read_text(encoding="utf-8")) if card.is_file() else None
    )
    if exported and int(exported[1]) > step:
        later.append(card.parent)
    if not later:
        return None
    later += [*_later(run_dir, "validation", step), *(run_dir / name for name in OF_A_STEP)]
    taken = {path.name for path in run_dir.glob("set-aside-*")}
    folder = run_dir / next(
        name for number in itertools.count(1) if (name := f"set-aside-{number}") not in taken
    )
    for path in filter(Path.exists, later):
        target = folder / path.relative_to(run_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    for name in ("metrics.jsonl", HELD_OUT):
        if (run_dir / name).is_file():
            shutil.copy2(run_dir / name, folder)
    return folder


def _later(run_dir: Path, kind: str, step: int) -> list[Path]:
    """`<kind>step-<n>` or `<kind>/step-<n>` with n above `step`."""
    found = run_dir.glob(f"{kind}step-*") if kind.endswith("-") else (run_dir / kind).glob("step-*")
    named = {path: re.fullmatch(r".*step-(\d+)", path.name) for path in found}
    return [path for path, match in named.items() if match and int(match[1]) > step]


def explain_run(config: Config, identity: dict, *, done: int) -> None:
    """Write `config.yaml`, as resolved, and `run.json` (versions, commit, hashes, ranks, command); log the start."""
    if not is_main_rank():
        return
    about = {
        "command": sys.argv,
        "ranks": dist.get_world_size(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "git_commit": git_commit(),
        "versions": versions(),
        **identity,
    }
    with atomic_path(config.run_dir / "config.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
        )
    write_json(config.run_dir / "run.json", about)
    log_event(config.run_dir, done, "resumed" if done else "started", f"on {about['ranks']} rank(s)", **about)


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, of this package and of what it computes with."""
    packages = ("torch", "triton", "deepspeed", "diffusers", "peft", "safetensors", "numpy")
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "pgdpo": __version__, **found}


def git_commit() -> str | None:
    """The checkout's commit, with `+changes` where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (
            "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
