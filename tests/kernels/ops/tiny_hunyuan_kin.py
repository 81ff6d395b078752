"""Tiny configurations and inputs of HunyuanVideo's and CogVideoX's kin, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable

# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {}
