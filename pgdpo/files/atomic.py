"""Files that are whole or not there: hashes and atomic writes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from pgdpo.messages.errors import InputError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as stream:
        return (
            hashlib.file_digest(stream, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _chunked(stream)
        )


def glance(folders: Mapping[str, Path]) -> str:
    """Digest of folders under these names: of each of their files its name, size, first and last MiB."""
    files = {
        Path(name) / file.relative_to(folder): file
        for name, folder in folders.items()
        for file in folder.rglob("*")
        if file.is_file()
    }
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        size = file.stat().st_size
        digest.update(f"{name}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _chunked(stream) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; on success it is flushed to disk and renamed, on failure removed.

    The file has the mode that `open` gives a new one there, whoever writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        mode = _mode_of_new(temporary)
        yield temporary
        temporary.chmod(mode)
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_opened(folder: Path) -> None:
    """Give all files in `folder` the mode that `open` gives a new one there: safetensors makes its own 0600."""
    probe = folder / f".{os.getpid()}.tmp"
    mode = _mode_of_new(probe)
    probe.unlink()
    for file in filter(Path.is_file, folder.rglob("*")):
        file.chmod(mode)


def _mode_of_new(file: Path) -> int:
    """Make `file`, for its mode: by the umask, or by what its folder passes on."""
    file.touch()
    return stat.S_IMODE(file.stat().st_mode)


def write_json(path: Path, value) -> None:
    """Write JSON atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json_lines(path: Path) -> list:
    """The values of a log of JSON lines, none where there is no file; a last line that a kill cut off is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def hold(folder: Path) -> IO[str]:
    """Keep `folder` for this process, until what is returned is closed or the process ends.

    Raises InputError where another process holds it. A file system without locks keeps nobody off.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(
            f"{folder}: another command is at work there: wait until it has ended, or name another folder"
        ) from error
    except OSError:
        pass
    return lock


def fsync(path: Path) -> None:
    """Flush a file or a directory entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
