"""The plan of a configuration on a machine: memory by part, work and time of a step, disk. No weights are loaded."""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, replace

import torch

from pgdpo.data.order import check_batches
from pgdpo.errors import InputError
from pgdpo.models.kept import compute_dtype
from pgdpo.models.targets import check_targets
from pgdpo.models.toy import ToyEncoders
from pgdpo.objectives import build_objective
from pgdpo.planning.disk import Disk, plan_disk
from pgdpo.planning.hardware import Machine
from pgdpo.planning.memory import FP32, Memory, Sharding, rank_memory, trained
from pgdpo.planning.model import Size, attention_width, block_lists, meta_policy, sizes
from pgdpo.planning.published import open_to_plan
from pgdpo.planning.step import Step, Work, plan_step
from pgdpo.planning.trace import Activations, Pass, activations
from pgdpo.settings import Config
from pgdpo.training.flops import forward_flops_by_op
from pgdpo.training.memory import save_memory
from pgdpo.training.parallel import check_sequence_parallel


@dataclass(frozen=True)
class Plan:
    """What one configuration needs on one machine."""

    machine: Machine
    latent_shape: tuple[int, ...]  # (C, F, H, W)
    parameters: int
    trained: int
    memory: Memory
    step: Step
    disk: Disk

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.machine.usable

    def as_json(self) -> dict:
        """Bytes, seconds and counts, with `fits` for memory and disk."""
        values = asdict(self)
        values["machine"]["usable"] = self.machine.usable
        values["step"]["seconds"] = self.step.seconds
        values["disk"] |= {"total": self.disk.total, "fits": self.disk.fits}
        return {"fits": self.fits, **values}


class Planner:
    """Plans of one model and data, under any memory and engine settings; what was traced is kept.

    Of several sizes the largest is planned for. `latent_shapes`: those of prepared pairs; by default what the VAE's
    configuration gives for `data.*`. Raises InputError as `open_to_plan` and `Family.check_size` do.
    """

    def __init__(self, config: Config, latent_shapes: list[tuple[int, ...]] | None = None) -> None:
        self.config = config
        self.family, self.note = open_to_plan(config.model)
        shapes = latent_shapes or [self._latent_shape(size) for size in config.data.sizes]
        self.latent_shape = max(shapes, key=math.prod)
        if config.model.adapter is not None:
            check_targets(self.family, config.model.adapter)
        policy = meta_policy(self.family, config)
        self.sizes = sizes(policy)
        self.depths = block_lists(policy)
        self._width = attention_width(policy)
        self.needs_reference = build_objective(
            config.objective["name"], **config.objective_options
        ).needs_reference
        self._traced: dict[tuple, Activations] = {}

    def _latent_shape(self, size: tuple[int, int, int]) -> tuple[int, ...]:
        codec = ToyEncoders() if self.config.model.encoders == "toy" else self.family
        codec.check_size(*size)
        return self.family.latent_shape(*size)

    def plan(self, config: Config, machine: Machine) -> Plan:
        """`config` differs from the planner's own in `train.*` and in how the model is held alone.

        Raises InputError if the batch does not split over the GPUs.
        """
        train = config.train
        split = train.pair_batching == "split"
        degree = train.sequence_parallel
        if machine.gpus % degree:
            raise InputError(f"train.sequence_parallel is {degree}: it must divide the {machine.gpus} GPUs")
        check_sequence_parallel(config, self.family, self.latent_shape)
        backward_passes = check_batches(train, machine.gpus // degree) * (2 if split else 1)
        sharding = Sharding(
            train.zero_stage,
            machine.gpus,
            backward_passes > 1,
            train.offload_optimizer,
            train.offload_parameters,
            train.deepspeed.get("zero_optimization", {}),
        )
        samples = train.micro_batch_pairs * (1 if split else 2)
        kept = self.activations(config, samples)
        on_host = kept.saved if config.model.activation_offload else 0
        memory = rank_memory(
            self.sizes,
            self._reference(config),
            sharding,
            kept.offloaded() if on_host else kept,
            inputs=self._inputs(2 * train.micro_batch_pairs),
            sampled=self.sampled(config),
        )
        memory = replace(memory, host=memory.host + on_host)
        step = plan_step(
            config,
            self.work,
            self.sizes,
            self._reference(config),
            sharding,
            machine,
            reference_runs=self.needs_reference and config.reference_mode != "cached",
            backward_passes=backward_passes,
            on_host=on_host,
        )
        moves = self.needs_reference and config.reference_mode in ("ema", "synced")
        disk = plan_disk(
            config,
            self.sizes,
            self.latent_shape,
            conditioning=self._conditioning_bytes(1),
            moving=trained(self.sizes) if moves else 0,
            bandwidth=machine.disk,
        )
        return Plan(
            machine,
            self.latent_shape,
            sum(size.numel for size in self.sizes),
            trained(self.sizes),
            memory,
            step,
            disk,
        )

    @functools.cached_property
    def work(self) -> Work:
        flops = forward_flops_by_op(self.family, self.latent_shape)
        tokens = self.family.tokens(self.latent_shape)
        exchanged = 4 * tokens * self._width * (2 if self.config.train.precision == "bf16" else FP32)
        return Work(sum(flops.values()), flops.get("aten.bmm", 0), tokens, exchanged)

    def activations(self, config: Config, samples: int) -> Activations:
        """Of `samples` clips in one forward, on CUDA."""
        key = samples, config.model.gradient_checkpointing
        if key not in self._traced:
            self._traced[key] = self.traced(config, self.traced_pass(samples))
        return self._traced[key].divided(config.train.sequence_parallel)

    def traced(self, config: Config, run: Pass) -> Activations:
        return activations(functools.partial(self.build, config), run, self.depths)

    def traced_pass(self, samples: int, *, cuda: bool = True) -> Pass:
        shape = self.latent_shape

        def inputs():
            return (
                torch.empty(samples, *shape, dtype=compute_dtype(self.config)),
                torch.empty(samples),
                self.family.example_conditioning(samples, shape),
            )

        return Pass(self.family.predict, inputs, bf16=self.config.train.precision == "bf16", cuda=cuda)

    def build(self, config: Config, depths: dict[str, int]) -> torch.nn.Module:
        """The policy on the meta device, with so many blocks in its lists, checkpointed as configured."""
        transformer = meta_policy(self.family, config, depths)
        save_memory(transformer, config.model.model_copy(update={"compile": "none", "attention": "native"}))
        return transformer

    def _reference(self, config: Config) -> list[Size]:
        """Parameters that the reference holds beside the policy's."""
        adapter, mode = config.model.adapter, config.reference_mode
        at_init = adapter is not None and adapter.reference_starts_at_init
        if not self.needs_reference or mode == "cached" or (mode == "adapter" and not at_init):
            return []
        if mode == "frozen" or adapter is None:
            copy = meta_policy(self.family, config, adapter=at_init).requires_grad_(False)
            return sizes(copy)
        return [size._replace(trained=False) for size in self.sizes if size.trained]  # a second adapter

    def sampled(self, config: Config) -> list[Size]:
        """Parameters of the expert that doesn't train, which validation loads beside the policy."""
        if config.evaluate.every is None or self.family.other_folder is None:
            return []
        return sizes(meta_policy(self.family, config, adapter=False).requires_grad_(False))

    def _inputs(self, samples: int) -> int:
        """Latents, noisy latents, target, the policy's and the reference's prediction, and the conditioning."""
        latents = torch.Size(self.latent_shape).numel() * FP32
        return 5 * samples * latents + self._conditioning_bytes(samples)

    def _conditioning_bytes(self, samples: int) -> int:
        with torch.device("meta"):
            tensors = self.family.example_conditioning(samples, self.latent_shape).values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
