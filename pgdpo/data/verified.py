"""Which prepared files have their bytes: each is hashed when it is new or has changed, and what was found is noted.

The note beside the files says of each that was whole its hash, size and times. It is no part of the data: no hash is
taken over it, and where it can't be written, or is lost, the files are hashed again. What changes a file in silence, as
a failing disk does, is found when its tensors are read, which are always hashed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgdpo.console import progress_bar
from pgdpo.data.files import sha256_of, write_json
from pgdpo.progress import moved

NOTE = "verified.json"
MEND = "run `pgdpo prepare` again: it makes just what is damaged or missing anew"
THREADS = 4


def look_at(
    folder: Path, entries: Sequence[Mapping], *, full: bool = False
) -> tuple[dict[str, str], dict[str, dict]]:
    """(file -> what is wrong with it, file -> its note, where it was hashed now and is whole).

    `entries`: `file`, `bytes` and `sha256` of each, as the index has them. A file whose note fits it is not read;
    `full`: all are.
    """
    paths = {entry["file"]: folder / entry["file"] for entry in entries}
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = pool.map(lambda entry: wrong_size(paths[entry["file"]], entry), entries)
        wrong = {entry["file"]: found for entry, found in zip(entries, sizes, strict=True) if found}
        there = [entry for entry in entries if entry["file"] not in wrong]
        noted = {} if full else read_note(folder)
        stamps = {
            entry["file"]: _stamp(paths[entry["file"]], entry) for entry in there
        }  # before they are read
        unknown = [
            entry
            for entry in there
            if {**stamps[entry["file"]], "verified": None}
            != {**noted.get(entry["file"], {}), "verified": None}
        ]
        if not unknown:
            return wrong, {}
        fresh = {}
        hashes = pool.map(lambda entry: sha256_of(paths[entry["file"]]), unknown)
        with progress_bar(f"hash prepared files of {folder.name}", total=len(unknown)) as bar:
            for number, (entry, found) in enumerate(zip(unknown, hashes, strict=True), start=1):
                name = entry["file"]
                if found == entry["sha256"]:
                    fresh[name] = stamps[name]
                else:
                    wrong[name] = _other_bytes(paths[name], found, entry["sha256"])
                moved(f"hashing prepared file {number} of {len(unknown)}")
                bar.advance()
    return wrong, fresh


def read_note(folder: Path) -> dict[str, dict]:
    """File -> what it was when it was whole; empty where there is no note, or none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(note, dict) for note in found.values()):
            return found
    return {}


def add_to_note(folder: Path, fresh: Mapping[str, dict]) -> None:
    """Note what was found whole; on a file system that takes no writes, nothing."""
    if fresh:
        with contextlib.suppress(OSError):
            write_json(folder / NOTE, {**read_note(folder), **fresh})


def _stamp(path: Path, entry: Mapping) -> dict:
    """By which a file is known again. The time of its inode changes too where a program sets the other one back."""
    found = path.stat()
    times = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"sha256": entry["sha256"], **times, "verified": now}


def wrong_size(path: Path, entry: Mapping) -> str | None:
    """What is wrong with a file, as far as its directory entry tells."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: the file is missing or cannot be read ({error.strerror}); {MEND}"
    if size != entry["bytes"]:
        return (
            f"{path}: has {size} bytes, the index says {entry['bytes']}: the file was cut or changed; {MEND}"
        )
    return None


def _other_bytes(path: Path, found: str, wanted: str) -> str:
    return (
        f"{path}: its SHA-256 is {found[:12]}..., the index says {wanted[:12]}...: the file was damaged or changed; "
        f"{MEND}"
    )
