"""Flow matching from any level on: from noise, from a re-noised clip, with a say after each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pgdpo.config import SampleSettings
from pgdpo.messages.progress import moved
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning


@torch.no_grad()
def denoise(
    family: Family,
    transformer: torch.nn.Module,
    latents: torch.Tensor,  # [C, F, H, W], at the level `sigma`
    sigma: float,
    conditioning: Conditioning,
    negative: Conditioning,
    settings: SampleSettings,
    *,
    dtype: torch.dtype,
    step_end: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Euler's method along the model's velocity from `sigma` to 0, with classifier-free guidance; fp32 latents.

    `settings` with a `flow_shift`; of its steps as many are made as `sigma` is of the way. `dtype`: that the model is
    told in. `step_end`: (latents, their level) -> the latents to go on with.
    """
    count = max(1, math.ceil(settings.steps * sigma))
    shift = settings.flow_shift
    levels = torch.linspace(1, 0, count + 1) * _unshift(sigma, shift)
    levels = (shift * levels / (1 + (shift - 1) * levels)).tolist()
    x = latents[None].float()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for number, (here, there) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            at = torch.full((1,), here, device=x.device)
            model = family.expert_at(transformer, here)
            velocity = family.predict(model, x.to(dtype), at, conditioning).float()
            if settings.guidance_scale > 1:
                plain = family.predict(model, x.to(dtype), at, negative).float()
                scale = family.guidance_at(here, settings.guidance_scale, settings.guidance_scale_2)
                velocity = plain + scale * (velocity - plain)
            x = x + (there - here) * velocity
            x = x if step_end is None else step_end(x[0], there)[None]
            moved(f"denoising step {number + 1} of {count}")
    return x[0]


def at_level(latents: torch.Tensor, noise: torch.Tensor, level: float) -> torch.Tensor:
    return (1 - level) * latents + level * noise


def _unshift(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)
