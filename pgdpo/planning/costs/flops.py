"""FLOPs of a training step, counted on meta tensors through a forward and its backward, and the share of the devices'
peak that they make (MFU).

The backward is autograd's own, so that what is not needed is not counted: a frozen weight has no gradient, and neither
has the input of the first layers; attention, which has no weights, costs twice its forward in any case.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pgdpo.config import Config
from pgdpo.diffusion.streams import VIDEO, Shapes, by_stream, of_shapes
from pgdpo.models.family import Family
from pgdpo.planning.cards import find_card
from pgdpo.planning.costs.meta import block_lists, meta_policy

ATTENTION = "aten.bmm"  # on the meta device attention is two batched products, and nothing else is


class Counts(NamedTuple):
    """FLOPs of one sample by aten operator."""

    forward: Counter[str]
    backward: Counter[str]  # of a forward whose results are all kept
    again: Counter[str]  # what blocks compute again in the backward where they keep their inputs alone


class SampleFlops:
    """FLOPs of one sample, latents of `shapes` by stream, through a configuration's model.

    Counted when they are first asked for. Text is counted at its longest, which training cuts to the longest prompt of
    a forward where padding is masked.
    """

    def __init__(self, family: Family, config: Config, shapes: Shapes) -> None:
        self.family, self.config, self.shapes = family, config, shapes

    def model(self, config: Config, *, reference_runs: bool) -> int:
        """What MFU counts of a training step: nothing that is computed again (PaLM, arXiv 2204.02311, appendix B).

        `config` differs from the one given at first in how model and reference are held alone, here as in `again`.
        """
        forward, backward = self.policy.forward.total(), self.policy.backward.total()
        reference = forward if _adapted_reference(config) else self.plain.total()
        by_reference = config.objective_options.get("inverted_by") == "reference"
        inversion = (config.diffusion.inversion_steps or 0) * (reference if by_reference else forward)
        return forward + backward + (reference if reference_runs else 0) + inversion

    def again(self, config: Config) -> int:
        """What checkpointed blocks and `group_batching: split` compute again of the policy's forward."""
        again, kind = self.policy.again, config.model.gradient_checkpointing
        found = {"none": 0, "selective": again.total() - again[ATTENTION], "full": again.total()}[kind]
        return found + (self.policy.forward.total() if config.train.group_batching == "split" else 0)

    @functools.cached_property
    def policy(self) -> Counts:
        """With the adapter."""
        return self._counted(adapter=True)

    @functools.cached_property
    def plain(self) -> Counter[str]:
        """A forward of the weights without the adapter."""
        adapted = self.config.model.adapter is not None
        return self._counted(adapter=False).forward if adapted else self.policy.forward

    def _counted(self, *, adapter: bool) -> Counts:
        """Without the adapter nothing trains."""

        def build(depths: dict[str, int]) -> torch.nn.Module:
            transformer = meta_policy(self.family, self.config, depths, adapter=adapter, dtype=torch.float32)
            return transformer if adapter else transformer.requires_grad_(False)

        depths = block_lists(meta_policy(self.family, self.config, adapter=False))
        return count(build, self.family, self.shapes, depths)


def count(
    build: Callable[[dict[str, int]], torch.nn.Module],
    family: Family,
    shapes: Shapes,
    depths: dict[str, int],
) -> Counts:
    """FLOPs of a forward and backward of one sample. Nothing is allocated.

    `build`: lengths of lists of blocks -> a transformer on the meta device in fp32. Those in `depths` are counted with
    two and with three blocks and extrapolated, since equal blocks cost equally much.
    """
    short = dict.fromkeys(depths, 2)
    base = count_whole(build(short), family, shapes)
    counts = [Counter(each) for each in base]
    for name, depth in depths.items():
        longer = count_whole(build({**short, name: 3}), family, shapes)
        for total, more, less in zip(counts, longer, base, strict=True):
            for operator in more:
                total[operator] += (depth - 2) * (more[operator] - less[operator])
    return Counts(*counts)


def count_whole(transformer: torch.nn.Module, family: Family, shapes: Shapes) -> Counts:
    """The same of one transformer, block by block."""
    again: list[FlopCounterMode] = []

    def contexts() -> tuple[AbstractContextManager, FlopCounterMode]:
        """Of a block's forward, and of its recomputation."""
        again.append(FlopCounterMode(display=False))
        return nullcontext(), again[-1]

    options = {"use_reentrant": False, "context_fn": contexts}
    transformer.enable_gradient_checkpointing(
        lambda block, *inputs: checkpoint(block.__call__, *inputs, **options)
    )
    # diffusers makes the backend that was chosen for one model that of all to come.
    with torch.device("meta"), attention_backend("native"):
        with FlopCounterMode(display=False) as forward:
            prediction = family.predict(
                transformer,
                of_shapes(lambda shape: torch.empty(1, *shape), shapes),
                torch.empty(1),
                family.example_conditioning(1, shapes[VIDEO]),
            )
        with FlopCounterMode(display=False) as backward:
            sums = sum(made.sum() for made in by_stream(prediction).values())
            if sums.requires_grad:
                sums.backward()
    recomputed = sum(map(_by_operator, again), Counter())
    return Counts(_by_operator(forward), _by_operator(backward) - recomputed, recomputed)


def _by_operator(counter: FlopCounterMode) -> Counter[str]:
    return Counter({str(op): flops for op, flops in counter.get_flop_counts().get("Global", {}).items()})


def _adapted_reference(config: Config) -> bool:
    """Whether the reference computes with an adapter too: one that moves, or that the policy's started from."""
    adapter = config.model.adapter
    return adapter is not None and (
        adapter.reference_starts_at_init or config.reference_mode in ("ema", "synced")
    )


def utilisation(flops_per_second: float, device: torch.device, ranks: int) -> float | None:
    """Share of the peak of `ranks` devices; None where the peak is not known."""
    card = find_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if card is None else flops_per_second / (card.peak * ranks)
