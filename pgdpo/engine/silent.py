"""Clips without sound on one rank, while another has some with it: every forward runs all modules, on every rank.

Of such clips the picture is computed as if the model made no other: nothing goes across the streams, and what makes
sound has no gradient. But ZeRO-3 gathers weights module by module, and ZeRO sums gradients as they come, both of all
ranks together: ranks that ran other modules would wait for one another, or sum what does not belong together. So what
goes across is computed and multiplied by 0, and so is the sound that nobody asked for, which changes no bit of the
picture and costs little: one token stands for the sound.
"""

from __future__ import annotations

import torch

from pgdpo.models.protocols import TokenSharing


def run_all_streams(transformer: torch.nn.Module, sharing: TokenSharing) -> None:
    """Have the transformer run all of its modules where it is told to keep its streams apart (`sharing.apart`)."""
    told = _Told()

    def begin(module, args: tuple, kwargs: dict) -> tuple:
        told.apart = kwargs.get(sharing.apart, False)
        return args, {**kwargs, sharing.apart: False}

    def nothing(module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output * 0 if told.apart else output

    def end(module, args: tuple, output):
        if not (told.apart and torch.is_grad_enabled()):
            return output
        video, *others = output
        return (video + sum((other * 0).sum() for other in others), *others)

    transformer.register_forward_pre_hook(begin, with_kwargs=True)
    transformer.register_forward_hook(end)
    for name in sharing.blocks:
        for block in transformer.get_submodule(name):
            for attention in sharing.across:
                block.get_submodule(attention).register_forward_hook(nothing)


class _Told:
    """Of the forward that runs, or whose blocks are computed again: whether it keeps its streams apart."""

    apart = False
