"""The policy's forward and backward over a micro-batch of pairs: chosen and rejected together, or one after the other.

`split` holds the activations of one side at a time. A pair's loss couples its two sides, so the loss and its gradient
by the predictions come first, from a forward that keeps no activations; then each side is run again and its share of
that gradient is sent back (Gao et al., arXiv 2101.06983). One more forward of the policy; losses and gradients are
those of the joint forward up to rounding. To DeepSpeed each side is a micro-batch of its own, which every ZeRO stage
accumulates as it does any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import deepspeed
import torch

from pgdpo.engine import engine as engines
from pgdpo.engine.parallel import Ranks
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning
from pgdpo.reference import Forward


def batched(family: Family, transformer: Callable, pair_batching: str) -> Forward:
    """(noisy [2B, ...], sigma [2B], conditioning) -> prediction [2B, ...] of `transformer`, batched as configured."""
    predict = functools.partial(family.predict, transformer)
    if pair_batching == "joint":
        return predict
    return lambda *sample: torch.cat([predict(*side) for side in _sides(*sample)])


class Joint:
    """The policy: `policy(noisy, sigma, conditioning)`, then `policy.backward(loss)`.

    `forward`: the engine's, with what surrounds it.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, forward: Callable, family: Family, ranks: Ranks
    ) -> None:
        self.engine, self.forward, self.family, self.ranks = engine, forward, family, ranks

    def __call__(self, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Prediction `[2B, ...]`, chosen half first."""
        return self.family.predict(self.forward, noisy, sigma, conditioning)

    def backward(self, loss: torch.Tensor) -> float | None:
        """Backward and DeepSpeed's step. Returns the gradient's norm before clipping where the optimizer stepped."""
        self.engine.backward(loss)
        return engines.step(self.engine)


class Split(Joint):
    """As `Joint`, with the activations of chosen or rejected alone in memory at any time."""

    def __call__(self, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        self._sample = noisy, sigma, conditioning
        with torch.no_grad():
            pred = batched(self.family, self.engine, "split")(noisy, sigma, conditioning)
        # fp32, so that the gradient is rounded to the prediction's dtype once, as in the joint backward.
        self._pred = pred.float().requires_grad_(torch.is_grad_enabled())
        return self._pred

    def backward(self, loss: torch.Tensor) -> float | None:
        loss.backward()
        for side, gradient in zip(_sides(*self._sample), self._pred.grad.chunk(2), strict=True):
            again = super().__call__(*side).float()
            # DeepSpeed takes the mean over its micro-batches, of which the two sides of a pair are two.
            norm = super().backward(2 * (again * gradient).sum())
        return norm


def _sides(noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> Iterator[tuple]:
    """The chosen and the rejected half of a forward's arguments."""
    for side in (0, 1):
        half = {name: tensor.chunk(2)[side] for name, tensor in conditioning.items()}
        yield noisy.chunk(2)[side], sigma.chunk(2)[side], half
