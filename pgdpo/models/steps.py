"""The denoising steps of diffusers' pipelines, told as they end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgdpo.messages.progress import moved

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


def step_told(pipeline: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
    """A pipeline's `callback_on_step_end` that changes nothing."""
    moved(f"denoising step {step + 1} of {pipeline.num_timesteps}")
    return tensors
