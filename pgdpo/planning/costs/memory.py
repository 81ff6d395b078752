"""Bytes on each rank: DeepSpeed's rules for weights, gradients and optimizer state, and the peak of a step.

Read off DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, stage3.py) and compared with its tensors in tests. Weights,
gradients and optimizer state are exact, Adam's step counters apart (4 bytes a tensor); activations are those of
`trace.py`; buffers and what ZeRO-3 gathers are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from pgdpo.planning.costs.meta import Size
from pgdpo.planning.costs.trace import Activations

FP32 = 4
MOMENTS = 2 * FP32  # Adam's two, a parameter


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank. The parts are not all alive at one time: `peak` is less than their sum."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    inputs: int
    activations: int
    buffers: int  # of the communication, and weights that ZeRO-3 has gathered
    validation: int  # another expert, held while clips are sampled
    peak: int  # on the GPU
    host: int  # in the host's memory: what is offloaded

    def parts(self) -> dict[str, int]:
        """The parts on the GPU."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("peak", "host")}


@dataclass(frozen=True)
class Sharding:
    """How weights and optimizer state lie over `world` ranks."""

    stage: int
    world: int
    accumulates: bool  # more than one backward pass a step
    offload_optimizer: str = "none"
    offload_parameters: str = "none"
    given: Mapping[str, Any] = field(default_factory=dict)  # `train.deepspeed.zero_optimization`

    @property
    def config(self) -> DeepSpeedZeroConfig:
        return DeepSpeedZeroConfig(**{**self.given, "stage": self.stage})


def rank_memory(
    sizes: Sequence[Size],
    reference: Sequence[Size],
    sharding: Sharding,
    activations: Activations,
    *,
    inputs: int,
    sampled: Sequence[Size] = (),
) -> Memory:
    """Memory of the rank that holds most.

    Args:
        sizes, reference: parameters of the policy, and of a second copy if there is one.
        inputs: bytes of latents, noise, targets and conditioning of a micro-batch.
        sampled: parameters of an expert that validation alone asks.
    """
    weights, copy = held(sizes, sharding), held(reference, sharding)
    other = held(sampled, sharding)
    gradients, optimizer = gradient_bytes(sizes, sharding), optimizer_bytes(sizes, sharding)
    buffers = reduce_buffer(sizes, sharding) + gathered(sizes, sharding)
    host = 0
    if sharding.offload_parameters != "none":
        shards = [partitioned(each, sharding.world) for each in (sizes, reference, sampled)]
        weights, copy, other = weights - shards[0], copy - shards[1], other - shards[2]
        host += sum(shards)
    if sharding.offload_optimizer != "none":
        host += optimizer + gradients
        largest = max(size.numel for size in sizes if size.trained) * FP32
        buffers, gradients, optimizer = buffers + largest, 0, 0
    resident = weights + optimizer + copy + inputs + buffers
    backward = _backward_peak(sizes, sharding, activations, gradients)
    # ZeRO 1 and 2 flatten the gradients of the partition into a second copy for the optimizer.
    step = 2 * gradients if sharding.stage in (1, 2) else gradients
    # Between steps: one block's activations at a time, of fewer clips than a step's.
    sampling = gradients + other + activations.floor if sampled else 0
    peak = resident + max(backward, step, sampling)
    return Memory(weights, gradients, optimizer, copy, inputs, activations.peak, buffers, other, peak, host)


def _backward_peak(
    sizes: Sequence[Size], sharding: Sharding, activations: Activations, gradients: int
) -> int:
    """Activations and gradients together: the former shrink over a backward pass while the latter grow."""
    whole = trained(sizes) * FP32
    if sharding.stage == 3:
        return activations.peak + gradients  # one flat buffer, held always
    if sharding.accumulates:
        # ZeRO-1 reduces at the last micro-batch alone; before it, gradients are whole.
        return activations.peak + (whole if sharding.stage < 2 else gradients)
    return max(activations.peak, activations.floor + (whole if sharding.stage == 0 else gradients))


def trained(sizes: Iterable[Size]) -> int:
    """Number of parameters that train."""
    return sum(size.numel for size in sizes if size.trained)


def held(sizes: Sequence[Size], sharding: Sharding) -> int:
    """Bytes of weights that stay on a rank between steps."""
    if sharding.stage == 3:
        # Each parameter is cut on its own and padded; small ones are held whole beside their shard.
        small = sharding.config.param_persistence_threshold
        whole = sharding.world * partitioned([size for size in sizes if size.numel <= small], sharding.world)
        again = sharding.config.zero_hpz_partition_size  # shards of a node's ranks beside those of all
        shards = partitioned(sizes, sharding.world) + (partitioned(sizes, again) if again > 1 else 0)
        return shards + whole
    total = sum(size.numel * size.itemsize for size in sizes)
    if sharding.stage == 0:
        return total
    return total + (_padded(sizes, sharding.world) - trained(sizes)) * FP32


def partitioned(sizes: Iterable[Size], world: int) -> int:
    """Bytes of ZeRO-3's shards on a rank."""
    return sum(math.ceil(size.numel / world) * size.itemsize for size in sizes)


def _padded(sizes: Iterable[Size], world: int) -> int:
    """Elements of ZeRO 1 and 2's flat buffer: it divides by twice the ranks (NCCL's alignment)."""
    return math.ceil(trained(sizes) / (2 * world)) * 2 * world


def _trained_shards(sizes: Iterable[Size], world: int) -> int:
    return sum(math.ceil(size.numel / world) for size in sizes if size.trained)


def optimizer_bytes(sizes: Sequence[Size], sharding: Sharding) -> int:
    """Adam's moments and, with ZeRO, a master copy that DeepSpeed keeps even of fp32 weights."""
    return optimizer_elements(sizes, sharding) * (MOMENTS + (FP32 if sharding.stage else 0))


def optimizer_elements(sizes: Sequence[Size], sharding: Sharding) -> int:
    """Elements that one rank's optimizer trains."""
    if sharding.stage == 0:
        return trained(sizes)
    if sharding.stage == 3:
        return _trained_shards(sizes, sharding.world)
    return _padded(sizes, sharding.world) // sharding.world


def gradient_bytes(sizes: Sequence[Size], sharding: Sharding) -> int:
    """After the last backward pass of a step, on the rank that holds most."""
    if sharding.stage == 0:
        return trained(sizes) * FP32
    if sharding.stage == 3:
        return _trained_shards(sizes, sharding.world) * FP32
    return FP32 * max(_partition_gradients(sizes, sharding.world))


def _partition_gradients(sizes: Iterable[Size], world: int) -> list[int]:
    """Elements on each rank under ZeRO 1 and 2, where the gradient of a parameter that crosses a border is kept whole
    on both of its sides."""
    share = _padded(sizes, world) // world
    elements = [0] * world
    start = 0
    for size in sizes:
        if size.trained:
            for rank in range(start // share, (start + size.numel - 1) // share + 1):
                elements[rank] += size.numel
            start += size.numel
    for rank in range(world):  # the padding behind the last parameter
        elements[rank] += max(0, (rank + 1) * share - max(start, rank * share))
    return elements


def reduce_buffer(sizes: Sequence[Size], sharding: Sharding) -> int:
    """The buffer that gradients are gathered in to be reduced."""
    if sharding.stage == 0 and sharding.world == 1:
        return 0
    config = sharding.config
    # One is filled while the other is reduced.
    buffers = 2 if sharding.stage in (1, 2) and config.overlap_comm and config.contiguous_gradients else 1
    return buffers * min(config.reduce_bucket_size, trained(sizes)) * FP32


def gathered(sizes: Sequence[Size], sharding: Sharding) -> int:
    """At most so many bytes of weights has ZeRO-3 gathered at a time."""
    if sharding.stage != 3:
        return 0
    config = sharding.config
    large = [size for size in sizes if size.numel > config.param_persistence_threshold]
    elements = sum(size.numel for size in large)
    live = min(elements, config.max_live_parameters + config.prefetch_bucket_size)
    return sum(size.numel * size.itemsize for size in large) * live // max(1, elements)
