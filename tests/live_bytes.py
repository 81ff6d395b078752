"""Bytes of all tensors alive at a time, counted by their storages: what a process really holds, whoever made it."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """`now` and `peak` of the storages that operators took or made while it was entered and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **kwargs or {})
        for tensor in tree_iter((args, kwargs, output)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage._cdata)
        self.peak = max(self.peak, self.now)
        return output

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key)
