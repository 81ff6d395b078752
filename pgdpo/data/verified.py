"""Which prepared files have their bytes: each is hashed when it is new or has changed, and what was found is noted.

The note beside the files says of each that was whole its hash, size and times. It is no part of the data: no hash is
taken over it, and where it can't be written, or is lost, the files are hashed again. What changes a file in silence, as
a failing disk does, is found when its tensors are read, which are always hashed.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pgdpo.files.atomic import sha256_of, write_json
from pgdpo.files.bounded import parse_json
from pgdpo.messages.console import progress_bar
from pgdpo.messages.progress import moved

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
    wrong, fresh, unknown = {}, {}, {}
    noted = {} if full else read_note(folder)
    with ThreadPoolExecutor(THREADS) as pool:
        stamps = pool.map(lambda entry: _stamp(folder / entry["file"], entry), entries)
        for entry, stamp in zip(entries, stamps, strict=True):
            name = entry["file"]
            if isinstance(stamp, str):
                wrong[name] = stamp
            elif {**noted.get(name, {}), "verified": stamp["verified"]} != stamp:
                unknown[name] = stamp
        if not unknown:
            return wrong, {}
        damage = pool.map(lambda name: _wrong_bytes(folder / name, unknown[name]["sha256"]), unknown)
        with progress_bar(f"hash prepared files of {folder.name}", total=len(unknown)) as bar:
            for (name, stamp), found in zip(unknown.items(), damage, strict=True):
                if found is None:
                    fresh[name] = stamp
                else:
                    wrong[name] = found
                moved(f"hashing {name} of {folder}")
                bar.advance()
    return wrong, fresh


def read_note(folder: Path) -> dict[str, dict]:
    """File -> what it was when it was whole; empty where there is no note, or none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        found = parse_json((folder / NOTE).read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(note, dict) for note in found.values()):
            return found
    return {}


def add_to_note(folder: Path, fresh: Mapping[str, dict]) -> None:
    """Note what was found whole; on a file system that takes no writes, nothing."""
    if fresh:
        with contextlib.suppress(OSError):
            write_json(folder / NOTE, {**read_note(folder), **fresh})


def _stamp(path: Path, entry: Mapping) -> dict | str:
    """By which a file is known again, taken before it is read; or what is wrong with it already. The time of its inode
    changes also where a program sets the other one back."""
    wrong = wrong_size(path, entry)
    if wrong:
        return wrong
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


def _wrong_bytes(path: Path, wanted: str) -> str | None:
    try:
        found = sha256_of(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); {MEND}"
    if found == wanted:
        return None
    return (
        f"{path}: its SHA-256 is {found[:12]}..., the index says {wanted[:12]}...: the file was damaged or changed; "
        f"{MEND}"
    )
