"""Where data lies: local paths and URLs, joined, opened, fetched; and what a manifest's row may name."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from pathlib import Path
from typing import IO

from pgdpo.files.atomic import atomic_path
from pgdpo.messages.errors import InputError

# What a row may name. Others (`pipe:`, `concat:`, chains with `::`) would let a data set start programs or reach
# beyond the data; `file:` is a path and is checked as one.
CLIP_SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf", "memory")
MAX_CLIP_BYTES = 4 << 30  # of a clip that is fetched
_HOME = re.compile(r"~[^/]*(/|$)")
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):")


def is_url(location: str | Path) -> bool:
    """Whether it is for fsspec: it has a `scheme://`."""
    return "://" in str(location)


def plain(location: str | Path) -> str | Path:
    """What a user named, as a path: `file://` taken off, `~/` expanded; anything else as it is."""
    text = expanded(str(location))
    if text != str(location):
        return type(location)(text)
    return text.removeprefix("file://") if text.startswith("file://") else location


def expanded(path: str) -> str:
    """With the home folder for a leading `~/` or `~name/`. Not for a manifest's rows: they say the same everywhere."""
    return os.path.expanduser(path) if is_of_a_home(path) else path


def is_of_a_home(location: str) -> bool:
    """Whether a path begins with `~/` or `~name/`."""
    return _HOME.match(location) is not None


def open_binary(location: str | Path) -> IO[bytes]:
    """A file or URL, open for reading. Raises OSError."""
    if not is_url(location):
        return Path(location).open("rb")
    import fsspec

    try:
        return fsspec.open(str(location), "rb").open()
    except (ImportError, ValueError) as error:  # a scheme that is unknown or needs another package
        raise OSError(str(error)) from error


def folder_of(location: str | Path) -> str:
    """The folder or URL prefix that a file lies in."""
    return str(location).rpartition("/")[0] if is_url(location) else str(Path(location).parent)


def is_file(location: str | Path) -> bool:
    """Whether the file is there. A URL is not asked: it shows when it is fetched."""
    return is_url(location) or Path(location).is_file()


def write_bytes(location: str | Path, content: bytes) -> None:
    """Write a whole file: atomic where local, in one put where remote."""
    if not is_url(location):
        with atomic_path(Path(location)) as temporary:
            temporary.write_bytes(content)
        return
    import fsspec

    filesystem, path = fsspec.url_to_fs(str(location))
    filesystem.makedirs(filesystem._parent(path), exist_ok=True)
    filesystem.pipe_file(path, content)


def clip_location(value: str, folder: str, media_root: Path | None = None) -> str:
    """Where the clip `value` of a manifest in `folder` lies: a local path or a URL.

    A path stays below the manifest's folder, or below `media_root`. Raises ValueError, saying what is wrong, for
    one that leaves them, for a control character and for a scheme that is not one of CLIP_SCHEMES.
    """
    if any(ord(letter) < 32 for letter in value):
        raise ValueError("it holds a control character")
    if value.startswith("file://"):
        value = value.removeprefix("file://")
    scheme = _SCHEME.match(value)
    if scheme:
        if scheme[1].lower() not in CLIP_SCHEMES or not is_url(value) or "::" in value:
            raise ValueError(f"`{scheme[1]}:` is no scheme that clips are read from")
        return value
    if is_url(folder):
        joined = posixpath.normpath(value)
        if joined.startswith(("../", "/")) or joined == "..":
            raise ValueError("it leaves the manifest's folder")
        return f"{folder}/{joined}"
    path = os.path.normpath(os.path.join(folder, value))
    if is_of_a_home(value) and not os.path.exists(path):
        raise ValueError("it begins with `~`: a row's path is relative to its manifest, on every machine")
    roots = [folder, *([str(media_root)] if media_root is not None else [])]
    if not any(_is_below(path, root) for root in roots):
        raise ValueError("it leaves the manifest's folder" + (" and data.media_root" if media_root else ""))
    return path


def _is_below(path: str, root: str) -> bool:
    path, root = os.path.abspath(path), os.path.abspath(root)
    return os.path.commonpath([path, root]) == root


def _copy(source: IO[bytes], target: Path, url: str) -> None:
    """Raises InputError for more than MAX_CLIP_BYTES: a server may send without end."""
    size = 0
    with target.open("wb") as file:
        while block := source.read(1 << 20):
            size += len(block)
            if size > MAX_CLIP_BYTES:
                raise InputError(
                    f"{url}: more than {MAX_CLIP_BYTES:,} bytes: no clip to train on is that large"
                )
            file.write(block)


def fetch(url: str, cache: Path | None = None) -> Path:
    """A local copy of a remote clip, downloaded once: kept under its URL and its version there.

    `cache`: by default $PGDPO_CACHE, or ~/.cache/pgdpo/clips. Raises InputError if it cannot be fetched.
    """
    import fsspec

    default = Path(os.environ.get("PGDPO_CACHE") or Path.home() / ".cache" / "pgdpo") / "clips"
    cache = cache or default
    try:
        filesystem, path = fsspec.url_to_fs(url)
        name = hashlib.sha256(f"{url} {filesystem.ukey(path)}".encode()).hexdigest()[:40]
        local = cache / name[:2] / (name + posixpath.splitext(path)[1][:8])
        if not local.is_file():
            with atomic_path(local) as temporary, filesystem.open(path, "rb") as source:
                _copy(source, temporary, url)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"{url}: cannot be fetched ({' '.join(str(error).split()) or type(error).__name__}): check the URL and "
            "your access, or leave the row out"
        ) from error
    return local
