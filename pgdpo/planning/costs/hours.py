"""What surrounds the steps: how long a whole run takes, and what its evaluation takes and needs of each GPU.

Sampling is planned as it goes: one model at a time on each rank, in the dtype that it computes in, the clips spread
over the ranks. Decoding them, and what a reward takes, is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pgdpo.config import Config, SampleSettings
from pgdpo.planning.costs.held_out import AT_THE_START, looks
from pgdpo.planning.costs.memory import Sharding, held
from pgdpo.planning.costs.meta import Size
from pgdpo.planning.hardware import Machine


@dataclass(frozen=True)
class Training:
    """Seconds of a run from its first step to its last, by part."""

    steps: float
    checkpoints: float  # writing what training waits for
    validation: float  # sampling clips every `evaluate.every` steps
    held_out: float  # figures of held-out pairs, as often

    @property
    def seconds(self) -> float:
        return self.steps + self.checkpoints + self.validation + self.held_out


@dataclass(frozen=True)
class Evaluation:
    """`pgdpo evaluate` on the ranks of the training: bytes of each, and seconds."""

    weights: int  # of the one model that is held; shards and the largest gathered tensor under ZeRO-3
    inputs: int
    activations: int  # of a forward of `evaluate.batch` pairs without gradient
    clips: int  # of both models together
    pairs: int  # held-out ones, whose errors are compared
    sampling: float  # seconds
    errors: float  # seconds

    @property
    def peak(self) -> int:
        return self.weights + self.inputs + self.activations

    @property
    def seconds(self) -> float:
        return self.sampling + self.errors


def sampling_weights(sizes: Sequence[Size], sharding: Sharding) -> int:
    """Bytes on each rank of a model that samples: whole, or under ZeRO-3 a shard and one module's weights at a time."""
    if sharding.stage < 3:
        return sum(size.numel * size.itemsize for size in sizes)
    return held(sizes, sharding) + max(size.numel * size.itemsize for size in sizes)


@dataclass(frozen=True)
class Sampler:
    """How fast one rank samples."""

    machine: Machine
    sharding: Sharding
    settings: SampleSettings
    bytes: int  # of the model that is gathered in each forward under ZeRO-3

    def seconds(self, clips: int, forward: int) -> float:
        """Of so many clips, one after the other, at `forward` FLOPs each."""
        branches = 2 if self.settings.guidance_scale > 1 else 1
        return self.forwards(clips * self.settings.steps * branches, forward)

    def forwards(self, count: int, forward: int) -> float:
        """Of so many forwards of one clip."""
        seconds = forward / (self.machine.mfu * self.machine.peak)
        if self.sharding.stage == 3:
            ring = (self.machine.gpus - 1) / self.machine.gpus
            seconds += ring * self.bytes / self.machine.between(self.machine.gpus)
        return count * seconds


def training_hours(
    config: Config, step: float, checkpoint: float, sampler: Sampler, forward: int, measured: float
) -> Training:
    """`step`, `checkpoint`: seconds of one. `forward`: FLOPs of one sample through the policy. `measured`: held-out
    samples that are measured on its way. Of two experts both, which train one at a time."""
    train, evaluate, runs = config.train, config.evaluate, len(config.parts)
    ranks = sampler.machine.gpus // train.sequence_parallel
    measured = math.ceil(measured * evaluate.draws_per_pair / ranks)
    return Training(
        runs * train.steps * step,
        runs * math.ceil(train.steps / train.checkpoint_every) * checkpoint,
        runs * looks(config) * sampler.seconds(math.ceil(evaluate.every_prompts / ranks), forward),
        runs * (looks(config) + AT_THE_START) * sampler.forwards(measured, forward),
    )


def evaluation_hours(
    config: Config, sampler: Sampler, forwards: Sequence[int], groups: Counter[int] | None
) -> tuple[int, int, float, float]:
    """(clips, held-out pairs, seconds of sampling, seconds of the errors).

    `forwards`: FLOPs of one sample through each model. `groups`: held out, by their samples; None where they could not
    be counted, and as many pairs as there are prompts are taken.
    """
    settings, ranks = config.evaluate, sampler.machine.gpus
    groups = Counter({2: settings.num_prompts}) if groups is None else groups
    pairs = groups.total()
    clips = min(settings.num_prompts, pairs) * settings.samples_per_prompt
    errors = sum(size * count for size, count in groups.items()) * settings.draws_per_pair * len(config.parts)
    return (
        len(forwards) * clips,
        pairs,
        sum(sampler.seconds(math.ceil(clips / ranks), forward) for forward in forwards),
        sum(sampler.forwards(math.ceil(errors / ranks), forward) for forward in forwards),
    )
