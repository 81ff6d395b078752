"""Work and time of one optimizer step: tokens, FLOPs, and seconds at a stated share of the GPUs' peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgdpo.config import Config
from pgdpo.engine.ulysses import keys_are_few
from pgdpo.models.protocols import TokenSharing
from pgdpo.planning import hardware
from pgdpo.planning.costs.flops import SampleFlops
from pgdpo.planning.costs.memory import FP32, Sharding, optimizer_elements
from pgdpo.planning.costs.meta import Size
from pgdpo.planning.hardware import Machine

# fp32 numbers that Adam moves for each that it trains: gradient, weight and two moments read, the last three written.
UPDATE = 7


@dataclass(frozen=True)
class Step:
    """One optimizer step over all ranks."""

    pairs: int  # or groups
    clips: int
    tokens: int
    flops: int  # model FLOPs: what MFU counts
    executed_flops: int  # with what checkpointing and `group_batching: split` compute again
    compute_seconds: float
    communication_seconds: float
    offload_seconds: float
    update_seconds: float  # of the optimizer on the GPU
    mfu: float  # of the whole step, model FLOPs alone

    @property
    def seconds(self) -> float:
        """Without overlap of the four: an upper bound at the stated share."""
        return self.compute_seconds + self.communication_seconds + self.offload_seconds + self.update_seconds


def plan_step(
    config: Config,
    counted: SampleFlops,
    sizes: list[Size],
    sharding: Sharding,
    machine: Machine,
    *,
    group_size: float,
    tokens: int,
    exchanged: float,
    reference_runs: bool,
    backward_passes: int,
    on_host: int,
) -> Step:
    """`group_size`: samples of a group on average. `tokens`: of one clip. `exchanged`: `sent_by_a_rank`, of one clip
    in one pass. `reference_runs`: a forward of the reference a
    step. `backward_passes`: micro-batches on a rank. `on_host`: bytes of activations that each of them sends to the
    host and back."""
    train = config.train
    samples = round(group_size * train.global_batch_groups)
    flops = samples * counted.model(config, reference_runs=reference_runs)
    executed = flops + samples * counted.again(config)
    compute = executed / (machine.mfu * machine.peak * machine.gpus)
    forwards = 2 + (1 if reference_runs else 0) + (train.group_batching == "split")
    half = config.train.precision == "bf16"
    communication = _communication(sizes, sharding, machine, backward_passes, forwards, half=half)
    again = config.model.gradient_checkpointing != "none"
    communication += _exchange(exchanged, samples, config, machine, forwards + again)
    offload = _offload(sizes, sharding, machine, backward_passes, forwards)
    offload += 2 * on_host * backward_passes / hardware.PCIE
    update = 0.0
    if sharding.offload_optimizer == "none":
        update = UPDATE * FP32 * optimizer_elements(sizes, sharding) / machine.bandwidth
    seconds = compute + communication + offload + update
    mfu = flops / (seconds * machine.peak * machine.gpus)
    return Step(
        train.global_batch_groups,
        samples,
        samples * tokens,
        flops,
        executed,
        compute,
        communication,
        offload,
        update,
        mfu,
    )


def _communication(
    sizes: list[Size], sharding: Sharding, machine: Machine, backward_passes: int, gathers: int, *, half: bool
) -> float:
    """Seconds that gradients and gathered weights travel, by the ring's volume. `half`: weights travel in bf16."""
    if machine.gpus == 1:
        return 0.0
    ring = (machine.gpus - 1) / machine.gpus
    gradients = FP32 * sum(size.numel for size in sizes if size.trained)
    passes = backward_passes if sharding.stage >= 2 else 1
    moved = gradients * (passes + 1)  # reduced, and the new weights gathered
    if sharding.stage == 3:
        weights = sum(size.numel * (2 if half else size.itemsize) for size in sizes)
        moved = gradients * passes + weights * gathers * backward_passes
    return ring * moved / machine.between(machine.gpus)


def sent_by_a_rank(
    sharing: TokenSharing, tokens: Mapping[str, int], widths: Mapping[str, int], itemsize: int, degree: int
) -> float:
    """Bytes that each of `degree` ranks sends around the attention of one clip, in one pass through all blocks.

    `tokens`: of each stream; `widths`: channels of each attention, of all blocks together. As `engine/ulysses.py`: a
    rank sends away all of its tokens' heads but its own, or keys and values that are few to all others.
    """
    sent = 0.0
    for name, (queries, keys) in sharing.attentions.items():
        if queries not in tokens or keys not in tokens:
            continue  # clips without sound
        asking, asked = tokens[queries], tokens[keys]
        moved = 2 * (asking + asked) / degree
        if queries != keys and keys_are_few(asking, asked, degree):
            moved = 2 * asked
        sent += moved * (degree - 1) / degree * widths[name] * itemsize
    return sent


def _exchange(sent: float, clips: int, config: Config, machine: Machine, passes: int) -> float:
    """Seconds of Ulysses' all-to-alls."""
    degree = config.train.sequence_parallel
    samples = clips * degree / machine.gpus  # that a rank has a part of
    return samples * passes * sent / machine.between(degree)


def _offload(
    sizes: list[Size], sharding: Sharding, machine: Machine, backward_passes: int, gathers: int
) -> float:
    """Seconds between GPU and host, of Adam on the host, and of the drive."""
    trained = sum(size.numel for size in sizes if size.trained)
    seconds = 0.0
    if sharding.offload_optimizer != "none":
        seconds += FP32 * trained / machine.gpus * (backward_passes + 1) / hardware.PCIE
        seconds += UPDATE * FP32 * trained / machine.nodes / hardware.HOST_OPTIMIZER
        if sharding.offload_optimizer == "nvme":
            seconds += 2 * 3 * FP32 * trained / machine.nodes / hardware.NVME
    if sharding.offload_parameters != "none":
        weights = sum(size.numel * size.itemsize for size in sizes) * gathers * backward_passes
        seconds += weights / machine.gpus / hardware.PCIE
        if sharding.offload_parameters == "nvme":
            seconds += weights / machine.nodes / hardware.NVME
    return seconds
