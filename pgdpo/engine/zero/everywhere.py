"""A gradient for every weight, on ranks that run other layers than each other.

DeepSpeed's stages 1 to 3 reduce the gradients that a rank has, one after the other in a buffer, and take it that every
rank has the same ones. Where a model makes sound and picture and a micro-batch has no sound, its rank has none for the
layers of the sound. Stage 1 goes through the weights in their order when a step's backward passes are done, so that
zeros in their place set it right; stage 2 and 3 reduce as the gradients come, which other layers change.
"""

from __future__ import annotations

import torch


class _Everywhere(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        ctx.weights = weights
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Views of one number each: what is added to others costs no memory.
        return gradient, *(weight.new_zeros(()).expand_as(weight) for weight in ctx.weights)


def everywhere(loss: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """The loss, whose backward pass gives each of the weights a gradient: 0 beside what else comes to it."""
    return _Everywhere.apply(loss, *weights)
