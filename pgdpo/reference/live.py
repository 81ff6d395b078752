"""A reference that is run: the policy with its adapter off, or a second copy of the weights."""

from __future__ import annotations

import functools

import torch

from pgdpo.diffusion.streams import Latents
from pgdpo.models.protocols import Conditioning
from pgdpo.objectives import Compared
from pgdpo.reference.protocol import Comparison, Forward, Reference


class Live(Reference):
    """`forward`: the reference's prediction, one no-gradient forward per micro-batch."""

    def __init__(self, forward: Forward) -> None:
        self.predict = torch.no_grad()(forward)

    def comparison(
        self, noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning, batch: dict
    ) -> Comparison:
        return functools.partial(Compared, against={"ref_pred": self.predict(noisy, sigma, conditioning)})


def adapter_off(transformer: torch.nn.Module, forward: Forward) -> Forward:
    """The policy itself with its adapter switched off: no second copy, and the same path through the model.

    `transformer`: the model that holds the adapter. `forward`: the policy's forward.
    """

    def reference(noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning) -> Latents:
        transformer.disable_adapters()
        try:
            return forward(noisy, sigma, conditioning)
        finally:
            transformer.enable_adapters()

    return reference
