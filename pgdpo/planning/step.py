"""Work and time of one optimizer step: tokens, FLOPs, and seconds at a stated share of the GPUs' peak."""

from __future__ import annotations

from dataclasses import dataclass

from pgdpo.planning import hardware
from pgdpo.planning.hardware import Machine
from pgdpo.planning.memory import FP32, Sharding
from pgdpo.planning.model import Size
from pgdpo.settings import Config
from pgdpo.training.flops import pair_flops


@dataclass(frozen=True)
class Step:
    """One optimizer step over all ranks."""

    pairs: int
    tokens: int
    flops: int  # model FLOPs: what MFU counts
    executed_flops: int  # with what checkpointing and `pair_batching: split` compute again
    compute_seconds: float
    communication_seconds: float
    offload_seconds: float
    mfu: float  # of the whole step, model FLOPs alone

    @property
    def seconds(self) -> float:
        """Without overlap of the three: an upper bound at the stated share."""
        return self.compute_seconds + self.communication_seconds + self.offload_seconds


@dataclass(frozen=True)
class Work:
    """What the model asks for, whatever it runs on: FLOPs of one forward of one sample, and tokens of one clip."""

    forward: int
    attention: int  # of `forward`
    tokens: int
    exchanged: (
        int  # bytes of queries, keys, values and outputs of all blocks, which Ulysses sends around attention
    )


def plan_step(
    config: Config,
    work: Work,
    sizes: list[Size],
    reference: list[Size],
    sharding: Sharding,
    machine: Machine,
    *,
    reference_runs: bool,
    backward_passes: int,
    on_host: int,
) -> Step:
    """`reference_runs`: a forward of the reference a step. `backward_passes`: micro-batches on a rank. `on_host`: bytes
    of activations that each of them sends to the host and back."""
    train, model = config.train, config.model
    pairs = train.global_batch_pairs
    inversion = 2 * work.forward * (config.diffusion.inversion_steps or 0)
    flops = pairs * (
        inversion + pair_flops(work.forward, adapter=model.adapter is not None, reference=reference_runs)
    )
    again = {"none": 0, "full": work.forward, "selective": work.forward - work.attention}[
        model.gradient_checkpointing
    ]
    again += work.forward if train.pair_batching == "split" else 0
    executed = flops + 2 * pairs * again
    compute = executed / (machine.mfu * machine.peak * machine.gpus)
    forwards = 2 + (1 if reference_runs else 0) + (train.pair_batching == "split")
    half = train.precision == "bf16"
    communication = _communication(sizes, sharding, machine, backward_passes, forwards, half=half)
    communication += _exchange(work, config, machine, forwards + (model.gradient_checkpointing != "none"))
    offload = _offload(sizes, sharding, machine, backward_passes, forwards)
    offload += 2 * on_host * backward_passes / hardware.PCIE
    return Step(
        pairs,
        2 * pairs * work.tokens,
        flops,
        executed,
        compute,
        communication,
        offload,
        flops / ((compute + communication + offload) * machine.peak * machine.gpus),
    )


def _communication(
    sizes: list[Size], sharding: Sharding, machine: Machine, backward_passes: int, gathers: int, *, half: bool
) -> float:
    """Seconds that gradients and gathered weights travel, by the ring's volume. `half`: weights travel in bf16."""
    if machine.gpus == 1:
        return 0.0
    ring = (machine.gpus - 1) / machine.gpus
    bandwidth = hardware.NVLINK if machine.nodes == 1 else hardware.NETWORK
    gradients = FP32 * sum(size.numel for size in sizes if size.trained)
    passes = backward_passes if sharding.stage >= 2 else 1
    moved = gradients * (passes + 1)  # reduced, and the new weights gathered
    if sharding.stage == 3:
        weights = sum(size.numel * (2 if half else size.itemsize) for size in sizes)
        moved = gradients * passes + weights * gathers * backward_passes
    return ring * moved / bandwidth


def _exchange(work: Work, config: Config, machine: Machine, passes: int) -> float:
    """Seconds of Ulysses' all-to-alls, in which a rank sends away all of its tokens' heads but its own."""
    degree = config.train.sequence_parallel
    samples = 2 * config.train.global_batch_pairs * degree / machine.gpus  # that a rank has a part of
    sent = work.exchanged / degree * (degree - 1) / degree
    bandwidth = hardware.NVLINK if degree <= machine.per_node else hardware.NETWORK
    return samples * passes * sent / bandwidth


def _offload(
    sizes: list[Size], sharding: Sharding, machine: Machine, backward_passes: int, gathers: int
) -> float:
    """Seconds between GPU and host, of Adam on the host, and of the drive."""
    trained = sum(size.numel for size in sizes if size.trained)
    seconds = 0.0
    if sharding.offload_optimizer != "none":
        seconds += FP32 * trained / machine.gpus * (backward_passes + 1) / hardware.PCIE
        seconds += 7 * FP32 * trained / machine.nodes / hardware.HOST_OPTIMIZER  # 4 read, 3 written
        if sharding.offload_optimizer == "nvme":
            seconds += 2 * 3 * FP32 * trained / machine.nodes / hardware.NVME
    if sharding.offload_parameters != "none":
        weights = sum(size.numel * size.itemsize for size in sizes) * gathers * backward_passes
        seconds += weights / machine.gpus / hardware.PCIE
        if sharding.offload_parameters == "nvme":
            seconds += weights / machine.nodes / hardware.NVME
    return seconds
