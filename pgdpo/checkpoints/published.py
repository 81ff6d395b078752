"""Which checkpoints there are: published by one rename, valid by their manifest, removed only behind a valid one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgdpo.files import bounded
from pgdpo.files.atomic import fsync, sha256_of
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved

MANIFEST = "manifest.json"
STATE = "state.json"
_NAME = re.compile(
    r"step-(\d+)(?:\.(\d+))?"
)  # step-00000100, and step-00000100.1 where that step was saved again


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Published checkpoints, oldest first; valid or not."""
    found = [path for path in (run_dir / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step_and_attempt)


def step_of(path: Path) -> int:
    return _step_and_attempt(path)[0]


def _step_and_attempt(path: Path) -> tuple[int, int]:
    step, attempt = _NAME.fullmatch(path.name).groups()
    return int(step), int(attempt or 0)


def latest_checkpoint(run_dir: Path, *, fallback: bool = True) -> Path | None:
    """The newest checkpoint whose files all have their hashes; damaged ones are named and passed over.

    Raises InputError instead of passing one over where `fallback` is off.
    """
    for path in reversed(checkpoints_of(run_dir)):
        damage = find_damage(path)
        if damage is None:
            return path
        report_damage(path, damage, fallback)
    return None


def find_checkpoint(run_dir: Path, step: int | None) -> Path | None:
    """The newest valid checkpoint, or that of `step`. Raises InputError if that one is not there or damaged."""
    if step is None:
        return latest_checkpoint(run_dir)
    found = at_step(run_dir, step)
    damage = find_damage(found)
    if damage is not None:
        raise damaged_step(found, damage)
    return found


def damaged_step(path: Path, damage: str) -> InputError:
    """Of the one checkpoint that was asked for."""
    return InputError(f"{path}: {damage}: take another step; there are {_steps(path.parents[1])}")


def at_step(run_dir: Path, step: int) -> Path:
    """The checkpoint of a step, valid or not; the newest where it was saved more than once. Raises InputError."""
    found = [path for path in checkpoints_of(run_dir) if step_of(path) == step]
    if not found:
        raise InputError(
            f"{run_dir}: no checkpoint of step {step}: there are {_steps(run_dir) or 'none'}; train.keep_checkpoints "
            "and train.keep_every say which are kept"
        )
    return found[-1]


def _steps(run_dir: Path) -> str:
    return ", ".join(str(step) for step in sorted({step_of(path) for path in checkpoints_of(run_dir)}))


def has_whole_state(path: Path) -> bool:
    """Whether a checkpoint's `state.json` is the one that was written; its tensors are not looked at."""
    try:
        manifest = bounded.parse_json(bounded.read_text(path / MANIFEST, bounded.LARGEST_JSON))
        return manifest["files"][STATE]["sha256"] == sha256_of(path / STATE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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


def report_damage(path: Path, damage: str, fallback: bool) -> None:
    """Say that a checkpoint is passed over. Raises InputError where `fallback` is off."""
    if not fallback:
        raise InputError(
            f"{path}: {damage}: leave out --no-fallback to go on from the newest valid checkpoint before it"
        )
    say("", first=f"checkpoint {path} is damaged: {damage}; falling back to the one before")


def sizes_of(path: Path) -> dict[str, int]:
    """A checkpoint's files with their bytes, by its manifest. Raises OSError, ValueError, KeyError, TypeError or
    AttributeError where that was changed after it was written."""
    return {name: int(entry["bytes"]) for name, entry in _read_manifest(path).items()}


def share_of(sizes: Mapping[str, int], rank: int, ranks: int) -> list[str]:
    """The files that one of several ranks reads: of about equally many bytes, each file in one rank's share."""
    return sorted(sizes, key=lambda name: (-sizes[name], name))[rank::ranks]


def find_damage(path: Path, *, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None if every file is there with its size and hash.

    `rank` of `ranks` hashes its share of the files alone; sizes are always looked at.
    """
    try:
        files, sizes = _read_manifest(path), sizes_of(path)
        hashes = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    strange = {file.name for file in path.glob("*.safetensors")} - files.keys()
    if strange:
        return f"{min(strange)} is not in the manifest"
    for name, size in sizes.items():
        if os.path.basename(name) != name or not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes, the manifest says {size}"
    mine = share_of(sizes, rank, ranks)
    with ThreadPoolExecutor(4) as pool:
        for name, found in zip(
            mine, pool.map(lambda name: _wrong_bytes(path / name, hashes[name]), mine), strict=True
        ):
            moved(f"hashing {name} of {path.name}")
            if found is not None:
                return f"{name} {found}"
    return None


def _wrong_bytes(path: Path, wanted: str) -> str | None:
    try:
        return None if sha256_of(path) == wanted else "has another SHA-256 than the manifest says"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _read_manifest(path: Path) -> dict[str, dict]:
    """Its files by name. Raises as `sizes_of`."""
    text = bounded.read_text(path / MANIFEST, bounded.LARGEST_JSON)
    files = dict(sorted(bounded.parse_json(text)["files"].items()))
    if text != _manifest_text(files):
        raise ValueError("it was changed after it was written")
    return files


def _manifest_text(files: dict[str, dict]) -> str:
    """The one way to write a manifest down, with a hash of itself: any other byte in it is damage."""
    own = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": own}, indent=1, sort_keys=True) + "\n"


def temporary_folder(run_dir: Path, step: int) -> Path:
    """An empty folder to write a checkpoint into; what killed saves left behind is removed."""
    folder = run_dir / "checkpoints" / f".step-{step:08d}.tmp"
    for left in [*folder.parent.glob(".*.tmp"), *folder.parent.glob(".*.old")]:
        shutil.rmtree(left)
    folder.mkdir(parents=True)
    return folder


def publish(temporary: Path, files: dict[str, dict]) -> Path:
    """Give a written folder its manifest and its name, by one rename. Returns the published folder.

    `files`: name -> {"bytes", "sha256"}. A step that was saved before gets another name, so that at every moment
    the older copy or both are there; `prune` removes the older one.
    """
    manifest = temporary / MANIFEST
    with manifest.open("w", encoding="utf-8") as file:
        file.write(_manifest_text(files))
        file.flush()
        os.fsync(file.fileno())
    fsync(temporary)
    name = temporary.name.removeprefix(".").removesuffix(".tmp")
    before = [path for path in checkpoints_of(temporary.parent.parent) if path.name.split(".")[0] == name]
    attempt = _step_and_attempt(before[-1])[1] + 1 if before else 0
    final = temporary.with_name(f"{name}.{attempt}" if attempt else name)
    os.rename(temporary, final)
    fsync(final.parent)
    return final


def prune(
    run_dir: Path,
    keep: int,
    *,
    every: int | None = None,
    best: int | None = None,
    known_valid: Container[Path] = (),
) -> list[Path]:
    """Remove what is older than the `keep` newest valid steps, and older copies of a valid step; steps that are
    multiples of `every`, and the step `best`, stay.

    What counts is read and hashed first, unless it is in `known_valid`: a damaged newest checkpoint never costs the
    last good one. Returns the valid ones, newest first.
    """
    valid: list[Path] = []
    seen: set[int] = set()  # valid, or kept unread
    for path in reversed(checkpoints_of(run_dir)):
        stays = step_of(path) == best or (every is not None and step_of(path) % every == 0)
        if step_of(path) in seen or (len(valid) >= keep and not stays):
            _remove(path)
        elif len(valid) >= keep:
            seen.add(step_of(path))
        elif path in known_valid or find_damage(path) is None:
            valid.append(path)
            seen.add(step_of(path))
    return valid


def _remove(path: Path) -> None:
    """Out of sight first: a folder that is half removed must not look like a damaged checkpoint."""
    retired = path.with_name(f".{path.name}.old")
    os.rename(path, retired)
    shutil.rmtree(retired)


def read_results(path: Path) -> dict | None:
    """A `results.json`; None where there is none, or, which is said, one that is broken."""
    if not path.is_file():
        return None
    try:
        results = bounded.parse_json(path.read_text(encoding="utf-8"))
        return results if isinstance(results, dict) and "steps" in results else None
    except (OSError, ValueError) as error:
        say(f" ({error}): evaluate that run again", first=f"{path} cannot be read")
        return None
