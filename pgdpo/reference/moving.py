"""A reference that follows the policy: TR-DPO (arXiv 2404.09656), and the EMA reference of Linear-DPO.

`ema`: after every optimizer step reference <- alpha * policy + (1 - alpha) * reference (TR-DPO's soft update);
`synced`: every tau steps reference <- policy (its hard update). With a LoRA the reference is a second adapter in the
same model, switched on by name; without one it is a second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import deepspeed
import torch

from pgdpo.diffusion.streams import Latents
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.adapter import NAME, REFERENCE
from pgdpo.models.protocols import Conditioning
from pgdpo.reference.live import Live
from pgdpo.reference.protocol import Forward

GATHERED = 2**26  # elements that are gathered at a time under ZeRO-3

Followed = dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]  # name -> (policy's, reference's)


class Moving(Live):
    """`followed`: the parameters that move. Every `every` steps they go `share` of the way to the policy's."""

    def __init__(self, forward: Forward, followed: Followed, *, share: float, every: int) -> None:
        super().__init__(forward)
        self.share, self.every = share, every
        self._groups = list(_groups(followed))

    @torch.no_grad()
    def follow(self, step: int) -> None:
        if step % self.every:
            return
        for group in self._groups:
            with _whole(group, 0), _whole(group, 1, written=True):
                for policy, reference in group.values():
                    reference.lerp_(policy.to(reference), self.share)

    @torch.no_grad()
    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self._groups:
            with _whole(group, 1):
                yield from (
                    (f"reference.{name}", reference.detach()) for name, (_, reference) in group.items()
                )

    @torch.no_grad()
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        lacking = [name for group in self._groups for name in group if f"reference.{name}" not in state]
        if lacking:
            raise InputError(
                f"the checkpoint holds no moving reference ({lacking[0]} is not there): it was written with another "
                "train.reference; change that back, or start anew with --restart or another `name`"
            )
        for group in self._groups:
            with _whole(group, 1, written=True):
                for name, (_, reference) in group.items():
                    reference.copy_(state[f"reference.{name}"])


def _whole(group: Followed, which: int, *, written: bool = False) -> deepspeed.zero.GatheredParameters:
    """The group's parameters, whole while this is entered; nothing to do unless ZeRO-3 partitioned them."""
    return deepspeed.zero.GatheredParameters(
        [pair[which] for pair in group.values()], modifier_rank=0 if written else None
    )


def _groups(followed: Followed) -> Iterator[Followed]:
    group, size = {}, 0
    for name, pair in followed.items():
        numel = getattr(pair[0], "ds_numel", pair[0].numel())
        if group and size + numel > GATHERED:
            yield group
            group, size = {}, 0
        group[name] = pair
        size += numel
    if group:
        yield group


def reference_adapter(transformer: torch.nn.Module, forward: Forward) -> tuple[Forward, Followed]:
    """The policy's forward through its second adapter (`add_reference_adapter`), and the adapters' parameters."""

    def reference(noisy: Latents, sigma: torch.Tensor, conditioning: Conditioning) -> Latents:
        transformer.set_adapter(REFERENCE)
        try:
            return forward(noisy, sigma, conditioning)
        finally:
            transformer.set_adapter(NAME)

    parameters = dict(transformer.named_parameters())
    followed = {
        name.replace(f".{REFERENCE}.", "."): (
            parameters[name.replace(f".{REFERENCE}.", f".{NAME}.")],
            parameter,
        )
        for name, parameter in parameters.items()
        if f".{REFERENCE}." in name
    }  # under peft's names
    return reference, followed


def second_copy(policy: torch.nn.Module, copy: torch.nn.Module) -> Followed:
    """The policy's trained parameters and those of a copy that is a model of the same class."""
    copied = dict(copy.named_parameters())
    return {name: (p, copied[name]) for name, p in policy.named_parameters() if p.requires_grad}
