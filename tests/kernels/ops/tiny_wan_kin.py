"""Tiny configurations and inputs of Wan's kin, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable

# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {}
