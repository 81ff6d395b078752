"""omega(sigma), by which beta is multiplied inside the sigmoid at the noise level that a pair was drawn at.

Forms, with a clip's coefficient alpha and the noise's s at that level, and SNR = alpha^2 / s^2:

    flow_dpo   (1 - sigma)^2, as in Flow-DPO (arXiv 2501.13918): beta_t = beta (1 - t)^2
    snr        SNR on the squared error of the clip x0
    min_snr    min(SNR, 5) on it: Min-SNR-gamma (arXiv 2303.09556)
    a table    [[sigma, weight], ...]: linear between its points, constant beyond

The errors here are those of what the model predicts. At one noisy latent the clip's squared error is s^2 times that of
the flow eps - x0 or of v (there alpha^2 + s^2 = 1), and s^2 / alpha^2 times that of epsilon. So `snr` is alpha^2 for
the former, which for a flow model is `flow_dpo`, and 1 for the latter: no division by s or alpha is left.
"""

from __future__ import annotations

import torch

MOST_SNR = 5.0  # gamma of min_snr, the paper's


def timestep_weight(
    form: str | list[list[float]],
    sigma: torch.Tensor,  # [B]
    *,
    level: torch.Tensor,  # [B] `Family.level(sigma)`: sigma itself for a flow, else alpha^2
    prediction: str,  # flow | v | epsilon
) -> torch.Tensor | None:
    """omega `[B]`, fp32, at `sigma`; None where `form` is `none`. `flow_dpo` is for flow models: `check_noise`."""
    if form == "none":
        return None
    if not isinstance(form, str):
        return between(form, sigma)
    if prediction == "flow":
        signal, noise = (1 - sigma).square(), sigma.square()
    else:
        signal, noise = level, 1 - level
    if form in ("flow_dpo", "snr"):
        return torch.ones_like(signal) if prediction == "epsilon" else signal
    if prediction == "epsilon":
        return (MOST_SNR * noise / signal).clamp_max(1)
    return torch.minimum(signal, MOST_SNR * noise)


def between(points: list[list[float]], sigma: torch.Tensor) -> torch.Tensor:
    """The piecewise linear function through `points`, whose sigmas rise, fp32 at `sigma` `[B]`; constant beyond."""
    places, weights = torch.tensor(points, dtype=torch.float64, device=sigma.device).unbind(1)
    sigma = sigma.double().contiguous()
    above = torch.searchsorted(places.contiguous(), sigma).clamp(1, len(points) - 1)
    share = ((sigma - places[above - 1]) / (places[above] - places[above - 1])).clamp(0, 1)
    return torch.lerp(weights[above - 1], weights[above], share).float()
