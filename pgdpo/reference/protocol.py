"""What the training loop asks of the reference, however it is held."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import torch

from pgdpo.diffusion.streams import Latents
from pgdpo.models.protocols import Conditioning
from pgdpo.objectives import Compared

Forward = Callable[[Latents, torch.Tensor, Conditioning], Latents]
Comparison = Callable[..., Compared]  # (pred, target, *, segments, mask, groups)


class Reference:
    """A way to hold the reference; as it stands, none at all: for objectives that need no reference."""

    def comparison(
        self, noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning, batch: dict
    ) -> Comparison:
        """What a prediction of this micro-batch is compared with, the reference's part filled in.

        `noisy` `[N, C, F, H, W]`, `sigma` `[N]`, `batch` as `collate` makes it. Call it before the policy's forward,
        so that a reference model runs while no activations are held.
        """
        return functools.partial(Compared, against={})

    def follow(self, step: int) -> None:
        """Called after every optimizer step, with the number of steps done."""

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and whole tensors that a checkpoint must hold to go on exactly; every rank must go through them."""
        yield from ()

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put what `state` gave back; every rank must call it."""
