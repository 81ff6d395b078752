"""Noise that the model itself finds for a clip, in place of drawn noise (DDIM inversion, for flow matching).

DDIM-InPO (arXiv 2503.18454), SmPO (arXiv 2506.02698) and Inversion-DPO (arXiv 2507.11554) follow the model's
probability-flow ODE from the clip x_0 up to a noisy latent x_t, and train on the noise that this path implies. There
x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, so the target is eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar).

With flow matching x_sigma = (1 - sigma) x_0 + sigma eps and the model predicts v = eps - x_0 = dx/dsigma. The ODE is
dx/dsigma = v(x, sigma) from x(0) = x_0, and the implied noise eps = (x_sigma - (1 - sigma) x_0) / sigma gives

    target = eps - x_0 = (x_sigma - x_0) / sigma,

the mean velocity along the path. DDIM's step is Euler's step of this ODE, and Euler's step is what is taken here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


@torch.no_grad()
def invert(
    velocity: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latents: torch.Tensor,  # [N, ...]
    sigma: torch.Tensor,  # [N]
    *,
    steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy latents at `sigma` and their target, both fp32 `[N, ...]`, after `steps` equal Euler steps from 0.

    `velocity(x, sigma)`: the model's prediction of eps - x_0, called `steps` times, without gradient. The sum of the
    velocities is kept beside the path, so that the target loses no digits to a small sigma.
    """
    start = latents.float()
    width = (sigma.float() / steps).view(-1, *[1] * (latents.ndim - 1))  # (N, 1, ...)
    total = torch.zeros_like(start)
    for step in range(steps):
        total += velocity(start + width * total, sigma * (step / steps)).float()
    return start + width * total, total / steps
