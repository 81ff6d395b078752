"""Large parts of a pipeline that are in memory only while they are used."""

from __future__ import annotations

import gc
from collections.abc import Callable

from pgdpo.models.later import torch


class OneAtATime:
    """Holds the part that was asked for last: VAE and text encoder are never in memory together."""

    def __init__(self) -> None:
        self._held: tuple[str, object] | None = None

    def get(self, name: str, load: Callable):
        self.drop_others(name)
        if self._held is None:
            self._held = (name, load())
        return self._held[1]

    def drop_others(self, name: str | None = None) -> None:
        """Let go of the part that is held, unless it is this one."""
        if self._held is not None and self._held[0] != name:
            self._held = None
            free_memory()


def free_memory() -> None:
    """Give back to the device what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
