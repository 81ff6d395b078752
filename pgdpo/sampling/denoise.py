"""Flow matching from any level on: from noise, from a re-noised clip, with a say after each step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pgdpo.config import SampleSettings
from pgdpo.diffusion.streams import Latents, each, video_of
from pgdpo.messages.progress import moved
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning


@torch.no_grad()
def denoise(
    family: Family,
    transformer: torch.nn.Module,
    latents: Latents,  # [C, F, H, W], or a mapping by stream, at the level `sigma`
    sigma: float,
    conditioning: Conditioning,
    negative: Conditioning,
    settings: SampleSettings,
    *,
    dtype: torch.dtype,
    step_end: Callable[[Latents, float], Latents] | None = None,
) -> Latents:
    """Euler's method along the model's velocity from `sigma` to 0, with classifier-free guidance; fp32 latents.

    `settings` with a `flow_shift`; of its steps as many are made as `sigma` is of the way. `dtype`: that the model is
    told in. `step_end`: (latents, their level) -> the latents to go on with. All streams are guided by one scale.
    """
    count = max(1, math.ceil(settings.steps * sigma))
    shift = settings.flow_shift
    levels = torch.linspace(1, 0, count + 1) * _unshift(sigma, shift)
    levels = (shift * levels / (1 + (shift - 1) * levels)).tolist()
    x = each(lambda clip: clip[None].float(), latents)
    device = video_of(x).device
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for number, (here, there) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            at = torch.full((1,), here, device=device)
            model, told = family.expert_at(transformer, here), each(lambda clip: clip.to(dtype), x)
            velocity = each(torch.Tensor.float, family.predict(model, told, at, conditioning))
            if settings.guidance_scale > 1:
                plain = each(torch.Tensor.float, family.predict(model, told, at, negative))
                scale = family.guidance_at(here, settings.guidance_scale, settings.guidance_scale_2)
                velocity = each(lambda v, p, scale=scale: p + scale * (v - p), velocity, plain)
            x = each(lambda clip, v, by=there - here: clip + by * v, x, velocity)
            if step_end is not None:
                x = each(lambda clip: clip[None], step_end(each(lambda clip: clip[0], x), there))
            moved(f"denoising step {number + 1} of {count}")
    return each(lambda clip: clip[0], x)


def at_level(latents: torch.Tensor, noise: torch.Tensor, level: float) -> torch.Tensor:
    return (1 - level) * latents + level * noise


def _unshift(sigma: float, shift: float) -> float:
    return sigma / (shift - (shift - 1) * sigma)
