"""Named tensors spread over the ranks that write them: safetensors files, hashed beside the training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved

SHARD_BYTES = 1 << 28  # of a file: what a rank writes while it gathers the next one
HELD = 6  # files of a rank that may be in memory, not yet written or hashed: 1.5 GB
WRITERS = 2  # threads of a rank: one fills a file while the disk takes in another
HASHERS = 2  # threads of a rank; SHA-256 runs at 0.5 to 2 GB/s in each
HUGE_PAGE = 1 << 21


class HashedFiles:
    """Files of one folder, written and hashed by threads while their maker goes on.

        files = HashedFiles(folder)
        files.add(name, parts)     # bytes that nobody changes any more
        files.written()            # all are on the disk
        hashes = files.hashes()    # name -> {"bytes": ..., "sha256": ...}; another thread may wait for it

    A hash is that of the bytes in memory, whatever the disk makes of them. Training waits for the writing alone, so
    hashing begins when all is written, or when HELD files are in memory and `add` must wait for room. `add` raises
    nothing of what goes wrong in the threads: ranks may wait for each other between two of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers, self._hashers = ThreadPoolExecutor(WRITERS), ThreadPoolExecutor(HASHERS)
        self._hashing = threading.Event()
        self._written: list[Future] = []
        self._hashed: dict[str, Future] = {}

    def add(self, name: str, parts: list[bytes | memoryview]) -> None:
        if len(self._hashed) >= HELD:
            self._hashing.set()
            wait(list(self._hashed.values())[: 1 - HELD])
        written = self._writers.submit(_write, self.folder / name, parts)
        self._written.append(written)
        self._hashed[name] = self._hashers.submit(self._hash, parts, written)

    def written(self) -> None:
        """Wait until every file is on the disk. Raises the first error of writing them."""
        self._writers.shutdown()
        self._hashing.set()
        for written in self._written:
            written.result()

    def hashes(self) -> dict[str, dict]:
        """Wait for the hashes. Raises the first error of writing or hashing."""
        self.written()
        self._hashers.shutdown()
        return {name: hashed.result() for name, hashed in self._hashed.items()}

    def _hash(self, parts: list[bytes | memoryview], written: Future) -> dict:
        self._hashing.wait()
        written.result()
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
            moved("files are hashed")
        return {"bytes": sum(map(len, parts)), "sha256": digest.hexdigest()}


def _write(path: Path, parts: list[bytes | memoryview]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            moved(f"{path.name} is written")
        file.flush()
        os.fsync(file.fileno())
    moved(f"{path.name} is on the disk")


class ShardWriter:
    """Writes this rank's share of tensors that all ranks see one after the other.

        writer = ShardWriter(files, "weights")
        for name, tensor in tensors:      # the same names in the same order on every rank
            writer.add(name, tensor)
        writer.close()

    A file is written while the next one is filled. Tensors are copied: the training may change them at once.
    """

    def __init__(self, files: HashedFiles, kind: str) -> None:
        self._files, self.kind = files, kind
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._owned = [0] * self.world  # bytes that each rank has been given, known to all
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._count = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Give the tensor, whole on every rank, to the rank that has least; files of a few MB stay together."""
        moved(f"{name} is gathered")
        size = tensor.numel() * tensor.element_size()
        owner = min(range(self.world), key=lambda rank: self._owned[rank] // SHARD_BYTES)
        self._owned[owner] += size
        if owner != self.rank:
            return
        if self._pending_bytes + size > SHARD_BYTES:
            self.close()
        self._pending[name] = _copy(tensor.detach())
        self._pending_bytes += size

    def close(self) -> None:
        """Hand over what is left."""
        if not self._pending:
            return
        name = f"{self.kind}-{self.rank:05d}-{self._count:05d}.safetensors"
        self._files.add(name, _safetensors(self._pending))
        self._count += 1
        self._pending, self._pending_bytes = {}, 0


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, in huge pages if it is large: page faults would take longer than the copying."""
    size = tensor.numel() * tensor.element_size()
    if size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    whole_pages = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, whole_pages, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel())
    return copy.view(tensor.shape).copy_(tensor)


def _safetensors(tensors: dict[str, torch.Tensor]) -> list[bytes | memoryview]:
    """A safetensors file: the length of a JSON header (8 bytes), the header, the tensors' bytes one after the other.

    Made here and not by the library, whose writer gives no sight of the bytes that are hashed.
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
    return [len(text).to_bytes(8, "little") + text, *parts]


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
_TYPES = {name: dtype for dtype, name in _DTYPES.items()}


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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors."""
        return {name: tuple(self.like(name).shape) for name in self}

    def file_of(self, name: str) -> str:
        """The name of a tensor's file."""
        return self._file_of[name][0].name

    def like(self, name: str) -> torch.Tensor:
        """A tensor's shape and dtype, on the meta device: nothing of it is read."""
        path, file = self._file_of[name]
        with _named(path):
            part = file.get_slice(name)
            return torch.empty(part.get_shape(), dtype=_TYPES[part.get_dtype()], device="meta")

    def __contains__(self, name: object) -> bool:
        return name in self._file_of  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


class SharedReader(Mapping):
    """The same tensors for all ranks: each is read by the one rank whose share its file is in, and sent to the others.

    Every rank must ask for the same names in the same order; a tensor comes whole, on `device`.
    """

    def __init__(self, reader: ShardReader, owners: Mapping[str, int], device: torch.device) -> None:
        """`owners`: file name -> rank."""
        self._reader, self._owners, self._device = reader, owners, device

    def __getitem__(self, name: str) -> torch.Tensor:
        owner = self._owners[self._reader.file_of(name)]
        if owner == dist.get_rank():
            tensor = self._reader[name].to(self._device)
        else:
            tensor = torch.empty_like(self._reader.like(name), device=self._device)
        if dist.get_world_size() > 1:
            dist.broadcast(tensor, owner)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._reader  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader)

    def __len__(self) -> int:
        return len(self._reader)

    def like(self, name: str) -> torch.Tensor:
        """As `ShardReader.like`; the other ranks need not ask."""
        return self._reader.like(name)
