"""The plan of a configuration on a machine: memory by part, work and time of a step, disk. No weights are loaded."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from pgdpo.config import Config, sample_settings
from pgdpo.data.preparing.room import conditioning_bytes
from pgdpo.data.visits.batches import check_batches
from pgdpo.diffusion.streams import VIDEO, Shapes, elements, of_shapes
from pgdpo.engine.memory import save_memory
from pgdpo.engine.parallel import check_sequence_parallel
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.targets import check_targets
from pgdpo.models.family import Family
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.objectives import build_objective
from pgdpo.planning.costs.disk import Disk, count_groups, plan_disk
from pgdpo.planning.costs.flops import SampleFlops
from pgdpo.planning.costs.held_out import pairs_to_measure
from pgdpo.planning.costs.hours import (
    Evaluation,
    Sampler,
    Training,
    evaluation_hours,
    sampling_weights,
    training_hours,
)
from pgdpo.planning.costs.memory import FP32, Memory, Sharding, rank_memory, trained
from pgdpo.planning.costs.meta import Size, attention_widths, block_lists, meta_policy, sizes
from pgdpo.planning.costs.step import Step, plan_step, sent_by_a_rank
from pgdpo.planning.costs.trace import Activations, Pass, activations
from pgdpo.planning.hardware import Machine
from pgdpo.planning.published import open_to_plan


@dataclass(frozen=True)
class Plan:
    """What one configuration needs on one machine."""

    machine: Machine
    latent_shape: tuple[int, ...]  # (C, F, H, W), of the picture
    streams: dict[str, dict]  # `shape` and `tokens` of one clip's latents, by stream
    parameters: int
    trained: int
    memory: Memory
    step: Step
    training: Training
    evaluation: Evaluation | None  # None: no pairs are held out
    disk: Disk
    notes: tuple[str, ...]  # what is assumed of this model and machine

    @property
    def fits(self) -> bool:
        """Whether training fits the GPUs."""
        return self.memory.peak <= self.machine.usable

    def as_json(self) -> dict:
        """Bytes, seconds and counts, with `fits` for memory, evaluation and disk."""
        values = asdict(self)
        values["machine"]["usable"] = self.machine.usable
        values["step"]["seconds"] = self.step.seconds
        values["training"]["seconds"] = self.training.seconds
        if self.evaluation is not None:
            peak = self.evaluation.peak
            values["evaluation"] |= {
                "seconds": self.evaluation.seconds,
                "peak": peak,
                "fits": peak <= self.machine.usable,
            }
        values["disk"] |= {"total": self.disk.total, "fits": self.disk.fits}
        return {"fits": self.fits, **values}


class Planner:
    """Plans of one model and data, under any memory and engine settings; what was traced is kept.

    Of several sizes the largest is planned for, and of groups the memory of the largest and the time of the mean one.
    `shapes` (by stream), `group_sizes`: those of prepared data; by default what the VAE's configuration gives for
    `data.*`, and what the manifests hold. `opened`: what `open_to_plan` found, if it was asked before. Raises
    InputError as that and `Family.check_clip` do.
    """

    def __init__(
        self,
        config: Config,
        shapes: Sequence[Shapes] | None = None,
        group_sizes: list[int] | None = None,
        *,
        opened: tuple[Family, str | None] | None = None,
    ) -> None:
        self.config = config
        self.family, self.note = open_to_plan(config.model) if opened is None else opened
        for size in config.data.sizes:
            self.family.check_clip(*size)
        shapes = shapes or [self.family.stream_shapes(*size) for size in config.data.sizes]
        self.shapes = max(shapes, key=elements)
        self.latent_shape = self.shapes[VIDEO]
        self.tokens = self.family.stream_tokens(self.shapes)
        if config.model.adapter is not None:
            check_targets(self.family, config.model.adapter)
        policy = meta_policy(self.family, config)
        self.sizes = sizes(policy)
        self.depths = block_lists(policy)
        self._widths = attention_widths(policy, self.family.sharing)
        self.flops = SampleFlops(self.family, config, self.shapes)
        self.needs_reference = build_objective(
            config.objective["name"], **config.objective_options
        ).needs_reference
        self._traced: dict[tuple, Activations] = {}
        counted = self._groups["train"] or Counter()
        self.group_size = max(group_sizes or counted or [2])
        self.mean_size = _mean_size(counted)

    def plan(self, config: Config, machine: Machine) -> Plan:
        """`config` differs from the planner's own in `train.*` and in how the model is held alone.

        Raises InputError if the batch does not split over the GPUs.
        """
        train = config.train
        split = train.group_batching == "split"
        degree = train.sequence_parallel
        if machine.gpus % degree:
            raise InputError(f"train.sequence_parallel is {degree}: it must divide the {machine.gpus} GPUs")
        check_sequence_parallel(config, self.family, self.latent_shape)
        backward_passes = check_batches(train, machine.gpus // degree) * (self.group_size if split else 1)
        sharding = Sharding(
            train.zero_stage,
            machine.gpus,
            backward_passes > 1,
            train.offload_optimizer,
            train.offload_parameters,
            train.deepspeed.get("zero_optimization", {}),
        )
        samples = train.micro_batch_groups * (1 if split else self.group_size)
        kept = self.activations(config, samples)
        on_host = kept.saved if config.model.activation_offload else 0
        memory = rank_memory(
            self.sizes,
            self._reference(config),
            sharding,
            kept.offloaded() if on_host else kept,
            inputs=self._inputs(self.group_size * train.micro_batch_groups),
            sampled=self.sampled(config),
        )
        memory = replace(memory, host=memory.host + on_host)
        runs = self.needs_reference and config.reference_mode != "cached"
        step = plan_step(
            config,
            self.flops,
            self.sizes,
            sharding,
            machine,
            group_size=self.mean_size,
            tokens=sum(self.tokens.values()),
            exchanged=self._sent(degree),
            reference_runs=runs,
            backward_passes=backward_passes,
            on_host=on_host,
        )
        moves = self.needs_reference and config.reference_mode in ("ema", "synced")
        disk = plan_disk(
            config,
            self.sizes,
            per_sample=elements(self.shapes),
            counts=self._groups,
            conditioning=self._stored_conditioning(config),
            moving=trained(self.sizes) if moves else 0,
            bandwidth=machine.disk,
        )
        sampler, evaluation = self._evaluation(config, sharding, machine)
        forward = self.flops.policy.forward.total()
        held_out = self._groups["held_out"] or Counter()
        measured, _ = pairs_to_measure(
            config,
            self.flops,
            of=held_out.total(),
            samples=_mean_size(held_out),
            group_size=self.mean_size,
            reference_runs=runs,
        )
        return Plan(
            machine,
            self.latent_shape,
            {
                name: {"shape": tuple(shape), "tokens": self.tokens[name]}
                for name, shape in self.shapes.items()
            },
            sum(size.numel for size in self.sizes),
            trained(self.sizes),
            memory,
            step,
            training_hours(
                config,
                step.seconds,
                disk.checkpoint_seconds,
                sampler,
                forward,
                measured * _mean_size(held_out),
            ),
            evaluation,
            disk,
            tuple(self.notes(machine)),
        )

    def notes(self, machine: Machine) -> Iterator[str]:
        if machine.assumed:
            yield f"No --gpu is named and there is none here: an {machine.name} is planned for."
        if self.note:
            yield f"{self.note}."
        if len(self.config.parts) > 1:
            yield "Memory is that of one expert, which trains alone; time and disk are those of both."
        if self.family.masks_text:
            yield (
                f"Prompts are counted at their longest, {self.family.text_length} tokens, an upper bound: training "
                "cuts them to the longest of a forward."
            )

    def _evaluation(
        self, config: Config, sharding: Sharding, machine: Machine
    ) -> tuple[Sampler, Evaluation | None]:
        """The sampling of one model at a time, in the dtype that it computes in."""
        held = self.sampling_sizes
        if config.model.adapter is not None and config.model.adapter.reference_starts_at_init:
            held = [*held, *(size for size in self.sizes if size.trained)]
        settings = sample_settings(config.evaluate, self.family.sampling(config.data.sizes[0][1:]))
        sampler = Sampler(machine, sharding, settings, sum(size.numel * size.itemsize for size in held))
        if config.data.held_out is None:
            return sampler, None
        forwards = [each.total() for each in (self.flops.plain, self.flops.policy.forward)]
        samples = 2 * config.evaluate.batch  # chosen and rejected, or both branches of guidance
        return sampler, Evaluation(
            sampling_weights(held, sharding),
            self._inputs(samples),
            self._sampling_activations(samples),
            *evaluation_hours(config, sampler, forwards, self._groups["held_out"]),
        )

    @functools.cached_property
    def _groups(self) -> dict[str, Counter[int] | None]:
        return {split: count_groups(self.config, split) for split in ("train", "held_out")}

    @functools.cached_property
    def sampling_sizes(self) -> list[Size]:
        """Parameters of the model that samples, and of the expert that it asks beside."""
        found = sizes(meta_policy(self.family, self.config, dtype=compute_dtype(self.config)))
        return found * 2 if len(self.config.parts) > 1 else [*found, *self._other_expert()]

    def _sampling_activations(self, samples: int) -> int:
        """Most bytes that are alive in a forward without gradient."""
        if ("sampling", samples) not in self._traced:
            run = replace(self.traced_pass(samples), backward=False)
            self._traced["sampling", samples] = self.traced(self.config, run)
        return self._traced["sampling", samples].peak

    def _sent(self, degree: int) -> float:
        itemsize = compute_dtype(self.config).itemsize
        return sent_by_a_rank(self.family.sharing, self.tokens, self._widths, itemsize, degree)

    def activations(self, config: Config, samples: int) -> Activations:
        """Of `samples` clips in one forward, on CUDA."""
        key = samples, config.model.gradient_checkpointing
        if key not in self._traced:
            self._traced[key] = self.traced(config, self.traced_pass(samples))
        return self._traced[key].divided(config.train.sequence_parallel)

    def traced(self, config: Config, run: Pass) -> Activations:
        """Without a backward, of weights in the dtype that they compute in."""
        dtype = None if run.backward else compute_dtype(config)
        return activations(functools.partial(self.build, config, dtype=dtype), run, self.depths)

    def traced_pass(self, samples: int, *, cuda: bool = True) -> Pass:
        dtype = compute_dtype(self.config)

        def inputs():
            return (
                of_shapes(lambda shape: torch.empty(samples, *shape, dtype=dtype), self.shapes),
                torch.empty(samples),
                self.family.example_conditioning(samples, self.latent_shape),
            )

        return Pass(self.family.predict, inputs, bf16=self.config.train.precision == "bf16", cuda=cuda)

    def build(
        self, config: Config, depths: dict[str, int], *, dtype: torch.dtype | None = None
    ) -> torch.nn.Module:
        """The policy on the meta device, with so many blocks in its lists, checkpointed as configured."""
        transformer = meta_policy(self.family, config, depths, dtype=dtype)
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
        return self._other_expert() if config.evaluate.shows_clips else []

    def _other_expert(self) -> list[Size]:
        """Parameters of the expert that doesn't train, in the dtype of the one that does."""
        if self.family.experts is None:
            return []
        return sizes(meta_policy(self.family, self.config, adapter=False).requires_grad_(False))

    def _inputs(self, samples: int) -> int:
        """Latents, noisy latents, target, the policy's and the reference's prediction, and the conditioning."""
        return 5 * samples * elements(self.shapes) * FP32 + self._conditioning_bytes(samples)

    def _stored_conditioning(self, config: Config) -> int:
        """Bytes on disk of one pair's conditioning, prepared beside a GPU, where text encoders compute in bf16."""
        text = torch.float32 if config.model.encoders == "toy" else torch.bfloat16
        image = getattr(torch, config.data.latent_dtype)
        return sum(conditioning_bytes(self.family, self.latent_shape, text=text, image=image))

    def _conditioning_bytes(self, samples: int) -> int:
        with torch.device("meta"):
            tensors = self.family.example_conditioning(samples, self.latent_shape).values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _mean_size(groups: Counter[int]) -> float:
    """Samples of a group; 2 where nothing is known of them."""
    return sum(size * count for size, count in groups.items()) / groups.total() if groups else 2.0
