"""Tiny configurations and inputs of the other image transformers, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable

# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {}
