"""Reward functions by name: (uint8 frames [F, H, W, 3], prompt) -> numbers, `total` among them."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from pgdpo.data.toy_reward import true_reward


def toy(frames: np.ndarray, prompt: str) -> dict[str, float]:
    """The toy world's true reward, measured from pixels."""
    return {name: float(value) for name, value in asdict(true_reward(frames, prompt)).items()}


REWARDS = {"toy": toy}
