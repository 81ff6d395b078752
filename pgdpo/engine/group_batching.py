"""The policy's forward and backward over a micro-batch of groups: all samples together, or some after the others.

`split` holds the activations of one sample of each group at a time: a group may be larger than what fits. A group's
loss couples its samples, so the loss and its gradient by the predictions come first, from a forward that keeps no
activations; then each piece is run again and its share of that gradient is sent back (Gao et al., arXiv 2101.06983).
One more forward of the policy; losses and gradients are those of the joint forward up to rounding. To DeepSpeed each
piece is a micro-batch of its own, which every ZeRO stage accumulates as it does any other: there are equally many on
all ranks and in all micro-batches, as many as the largest group has samples; those that a smaller group lacks have no
weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist

from pgdpo.config import TrainConfig
from pgdpo.diffusion.streams import Latents, by_stream, each, joined
from pgdpo.engine import engine as engines
from pgdpo.engine.parallel import Ranks
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning
from pgdpo.reference import Forward


@dataclass(frozen=True)
class Pieces:
    """How a forward is cut: `rows` samples at a time, in `count` pieces."""

    rows: int
    count: int

    def of(self, *sample, padded: bool) -> Iterator[tuple]:
        """The pieces of a forward's arguments; `padded`: `count` of them, the last one again where there are fewer."""
        noisy, sigma, conditioning = sample
        starts = range(0, len(sigma), self.rows)
        for start in [*starts, *[starts[-1]] * (self.count - len(starts) if padded else 0)]:
            rows = slice(start, start + self.rows)
            told = {name: tensor[rows] for name, tensor in conditioning.items()}
            yield each(lambda tensor, rows=rows: tensor[rows], noisy), sigma[rows], told


def batched(family: Family, transformer: Callable, train: TrainConfig, group_size: int) -> Forward:
    """(noisy [N, ...], sigma [N], conditioning) -> prediction [N, ...] of `transformer`, batched as configured.

    `group_size`: samples of the largest group. Without gradient where it is split.
    """
    predict = functools.partial(family.predict, transformer)
    if train.group_batching == "joint":
        return predict
    pieces = Pieces(train.micro_batch_groups, group_size)

    def one_after_the_other(*sample) -> Latents:
        # Ranks go through equally many blocks, however large their groups: sharded weights are gathered by all of them
        # together, and at blocks they ask each other whether to stop.
        found = [predict(*piece) for piece in pieces.of(*sample, padded=dist.get_world_size() > 1)]
        return each(lambda tensor: tensor[: len(sample[1])], joined(found, torch.cat))

    return one_after_the_other


class Joint:
    """The policy: `policy(noisy, sigma, conditioning)`, then `policy.backward(loss)`.

    `forward`: the engine's, with what surrounds it.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, forward: Callable, family: Family, ranks: Ranks
    ) -> None:
        self.engine, self.forward, self.family, self.ranks = engine, forward, family, ranks

    def __call__(self, noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning) -> Latents:
        """Prediction `[N, ...]` of samples, member by member; of several streams by name, as `noisy` is."""
        return self.family.predict(self.forward, noisy, sigma, conditioning)

    def backward(self, loss: torch.Tensor) -> float | None:
        """Backward and DeepSpeed's step. Returns the gradient's norm before clipping where the optimizer stepped."""
        self.engine.backward(loss)
        return engines.step(self.engine)


class Split(Joint):
    """As `Joint`, with the activations of one sample of each group in memory at any time.

    `group_size`: samples of the largest group.
    """

    def __init__(self, *policy, train: TrainConfig, group_size: int) -> None:
        super().__init__(*policy)
        self._pieces = Pieces(train.micro_batch_groups, group_size)
        self._without_gradient = batched(self.family, self.engine, train, group_size)

    def __call__(self, noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning) -> Latents:
        self._sample = noisy, sigma, conditioning
        with torch.no_grad():
            pred = self._without_gradient(noisy, sigma, conditioning)
        # fp32, so that the gradient is rounded to the prediction's dtype once, as in the joint backward.
        self._pred = each(lambda made: made.float().requires_grad_(torch.is_grad_enabled()), pred)
        return self._pred

    def backward(self, loss: torch.Tensor) -> float | None:
        loss.backward()
        gradients = {name: self._cut(made) for name, made in by_stream(self._pred).items()}
        for number, piece in enumerate(self._pieces.of(*self._sample, padded=True)):
            again = by_stream(super().__call__(*piece))
            sums = [(made.float() * gradients[name][number]).sum() for name, made in again.items()]
            # DeepSpeed takes the mean over its micro-batches, of which the pieces are so many.
            norm = super().backward(self._pieces.count * sum(sums))
        return norm

    def _cut(self, pred: torch.Tensor) -> list[torch.Tensor]:
        """The gradient by a prediction, in pieces; zeros for those that a smaller group lacks, and for a stream whose
        errors do not count."""
        whole = torch.zeros_like(pred) if pred.grad is None else pred.grad
        pieces = [*whole.split(self._pieces.rows)]
        return pieces + [torch.zeros_like(pieces[-1])] * (self._pieces.count - len(pieces))
