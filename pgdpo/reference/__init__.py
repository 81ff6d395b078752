"""Ways to hold the reference model, behind one call: (noisy, sigma, prompt) -> the reference's prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def adapter_off(transformer: torch.nn.Module, forward: Forward) -> Forward:
    """The policy itself with its adapter switched off: no second copy, and the same path through the model.

    `transformer`: the model that holds the adapter. `forward`: the policy's forward.
    """

    @torch.no_grad()
    def reference(noisy: torch.Tensor, sigma: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        transformer.disable_adapters()
        try:
            return forward(noisy, sigma, prompt)
        finally:
            transformer.enable_adapters()

    return reference


def frozen_copy(transformer: torch.nn.Module, predict: Callable) -> Forward:
    """A second copy of the initial weights that never trains; `predict` is the model family's forward."""
    transformer.requires_grad_(False)

    @torch.no_grad()
    def reference(noisy: torch.Tensor, sigma: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return predict(transformer, noisy, sigma, prompt)

    return reference
