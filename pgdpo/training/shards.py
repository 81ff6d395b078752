"""Named tensors spread over the ranks that write them: safetensors files, hashed while they are written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from pgdpo.errors import InputError

SHARD_BYTES = 1 << 29  # of a file: what a rank writes while it gathers the next one


class ShardWriter:
    """Writes this rank's share of tensors that all ranks see one after the other.

        writer = ShardWriter(folder, "weights")
        for name, tensor in tensors:      # the same names in the same order on every rank
            writer.add(name, tensor)
        hashes = writer.close()           # file name -> {"bytes": ..., "sha256": ...}

    A file is written, flushed and hashed by a thread while the next one is filled. Nothing that goes wrong there
    stops `add`, in which ranks may wait for each other; `close` raises it.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._owned = [0] * self.world  # bytes that each rank has been given, known to all
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._thread = ThreadPoolExecutor(1)
        self._written: dict[str, Future] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Give the tensor, whole on every rank, to the rank that has least; files of a few MB stay together."""
        size = tensor.numel() * tensor.element_size()
        owner = min(range(self.world), key=lambda rank: self._owned[rank] // SHARD_BYTES)
        self._owned[owner] += size
        if owner != self.rank:
            return
        if self._pending and self._pending_bytes + size > SHARD_BYTES:
            self._flush()
        self._pending[name] = tensor.detach().to("cpu").contiguous()
        self._pending_bytes += size

    def close(self) -> dict[str, dict]:
        """Wait for this rank's files. Raises the first error of writing them."""
        if self._pending:
            self._flush()
        self._thread.shutdown(wait=True)
        return {name: future.result() for name, future in self._written.items()}

    def _flush(self) -> None:
        for earlier in list(self._written.values())[:-1]:  # at most two files are held in memory
            earlier.exception()
        name = f"{self.kind}-{self.rank:05d}-{len(self._written):05d}.safetensors"
        self._written[name] = self._thread.submit(_write, self.folder / name, self._pending)
        self._pending, self._pending_bytes = {}, 0


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> dict:
    """A safetensors file: the length of a JSON header (8 bytes), the header, the tensors' bytes one after the other.

    Written here and not by the library, whose writer gives no sight of the bytes: hashing them meanwhile is free
    where there is a second core, and reading a file back to hash it is not.
    """
    header, start, parts = {}, 0, []
    for name, tensor in sorted(
        tensors.items(), key=lambda item: -item[1].element_size()
    ):  # as the format aligns them
        part = memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
        end = start + len(part)
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        parts.append(part)
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return write_hashed(path, [len(text).to_bytes(8, "little") + text, *parts])


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_hashed(path: Path, parts: list[bytes | memoryview]) -> dict:
    """Write and flush a file; its SHA-256 is that of the bytes meant, taken meanwhile in another thread."""
    with ThreadPoolExecutor(1) as hasher:
        digest = hasher.submit(_hash, parts)
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": sum(map(len, parts)), "sha256": digest.result()}


def _hash(parts: list[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}): nothing else is read; fall back to an earlier checkpoint"
        ) from error


class ShardReader(Mapping):
    """The tensors of a kind that a folder holds, read one by one: name -> CPU tensor."""

    def __init__(self, folder: Path, kind: str) -> None:
        """Raises InputError for a file that is no safetensors file."""
        self._file_of: dict[str, tuple[Path, safe_open]] = {}
        for path in sorted(folder.glob(f"{kind}-*.safetensors")):
            with _named(path):
                file = safe_open(path, "pt")
                self._file_of |= {name: (path, file) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        path, file = self._file_of[name]
        with _named(path):
            return file.get_tensor(name)

    def __iter__(self) -> Iterable[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)
