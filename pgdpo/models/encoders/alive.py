"""How many bytes of tensors are alive at once, counted while operators run on fake or meta tensors."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def storage_of(tensor: torch.Tensor) -> int:
    """The identity of a tensor's storage while it lives; views share it."""
    return tensor.untyped_storage()._cdata


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that operators made and that still live; `given` are not counted."""

    def __init__(self, given: set[int]) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = set(given)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, out)
        return out

    def _count(self, tensor: torch.Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_of(tensor)
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.bytes -= nbytes
