"""Large libraries that a family's file names at its top and that are imported when something of them is first used.

A configuration reads every family's file for its settings and facts, and says what is wrong with it within a fraction
of a second; torch, diffusers and transformers take some seconds.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import diffusers
    import torch
    import transformers
else:

    class _Later(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # what is asked of a module without using it
                raise AttributeError(name)
            return getattr(importlib.import_module(self.__name__), name)

    diffusers, torch, transformers = _Later("diffusers"), _Later("torch"), _Later("transformers")

F = TypeVar("F", bound=Callable)


class Diffusers:
    """A class attribute that is one of diffusers' classes, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type) -> type:
        return getattr(diffusers, self.name)


def no_grad(function: F) -> F:
    """As the decorator `torch.no_grad()`."""

    @functools.wraps(function)
    def call(*arguments, **options):
        with torch.no_grad():
            return function(*arguments, **options)

    return call
