"""Clips at the prompts of prepared pairs, as the model's card and `evaluate` say."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import yaml

from pgdpo.config import Config, SampleSettings, sample_settings
from pgdpo.data.buckets import size_name
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import stack_conditioning, to_device
from pgdpo.diffusion.streams import VIDEO, Latents, each, seed_of
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo.models.guidance import negative_branch
from pgdpo_kernels import pair_noise

Job = tuple[int, int]  # (index of the pair whose prompt it is, seed of the initial noise)


class Sampler:
    """What every clip of one configuration and data set is sampled with; the model comes with each call.

        sampler = Sampler(config, family, data, device)
        for batch, own in share_of(sampler.batches(jobs), rank, ranks, in_step=False):
            latents = sampler.sample(transformer, batch)

    A clip follows from its prompt, its seed and its batch, and batches from the jobs alone: on any number of ranks the
    clips are the same. Raises InputError where the negative prompt was not prepared.
    """

    def __init__(self, config: Config, family: Family, data: PreparedPairs, device: torch.device) -> None:
        self.config, self.family, self.data, self.device = config, family, data, device
        self.how = how_sampled(config, family, data)

    def batches(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Of one size each, and of at most `evaluate.batch` clips."""
        return list(self.data.batches(jobs, self.config.evaluate.batch))

    def sample(
        self,
        transformer: torch.nn.Module,
        jobs: Sequence[Job],
        positive: Callable[[], AbstractContextManager[torch.nn.Module]] | None = None,
    ) -> Latents:
        """Latents `[N, C, F, H, W]` on the CPU for jobs of one size; of a model of several streams by name.

        `positive`: of a trained model, the one that answers guidance's conditional branch where the objective trains
        for the unconditional one.
        """
        with contextlib.ExitStack() as stack:
            if self.config.trains_negative_branch and positive is not None:
                stack.enter_context(negative_branch(transformer, positive, len(jobs)))
            found = sample_latents(self.config, self.family, transformer, self.data, jobs, self.device)
            return each(lambda latents: latents.cpu(), found)


@torch.no_grad()
def sample_latents(
    config: Config,
    family: Family,
    transformer: torch.nn.Module,
    data: PreparedPairs,
    jobs: Sequence[Job],
    device: torch.device,
) -> Latents:
    """Latents `[N, C, F, H, W]` for `jobs`, all of one size; of a model of several streams by name."""
    size = data.size_of(jobs[0][0])
    settings = sample_settings(config.evaluate, family.sampling(size[1:]))
    items = [data[index, seed] for index, seed in jobs]
    keys = {
        name: torch.tensor([item[key] for item in items], device=device)
        for name, key in (("pair_ids", "pair_id"), ("draw", "draw"))
    }
    shapes = family.stream_shapes(*size)
    noise = {
        name: pair_noise(
            (len(jobs), *shapes[name]),
            seed=seed_of(config.evaluate.seed, name),
            device=device,
            dtype=torch.float32,
            **keys,
        )
        for name in family.streams
    }
    noise = noise if len(noise) > 1 else noise[VIDEO]
    conditioning = [item["conditioning"] for item in items]
    negative = [item | data.text(settings.negative_prompt) for item in conditioning]
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        return family.sample(
            transformer,
            noise,
            to_device(stack_conditioning(conditioning), device),
            to_device(stack_conditioning(negative), device),
            settings,
        )


def how_sampled(config: Config, family: Family, data: PreparedPairs) -> dict[str, SampleSettings]:
    """How clips of each size of `data` are sampled, by the size's name. Says it.

    Raises InputError where the negative prompt was not prepared, and for one step where the scheduler takes two.
    """
    found = {}
    for bucket in data.buckets:
        size = data.size_of(bucket[0])
        found[size_name(size)] = settings = sample_settings(config.evaluate, family.sampling(size[1:]))
        if settings.steps == 1 and family.load_scheduler().config.get("shift_terminal"):
            raise InputError(
                "evaluate.sampling_steps is 1: this model's scheduler stretches its noise levels to a last one "
                "(shift_terminal), which of one level gives no number: set it to 2 or more"
            )
        if not data.has_text(settings.negative_prompt):
            raise InputError(
                f"evaluate.negative_prompt is {settings.negative_prompt!r}: {data.folder} does not hold it: run "
                f"`pgdpo prepare CONFIG {_asking_for(settings)}`, which encodes this alone and keeps earlier ones, or "
                "set it to '', which is there"
            )
        say_once(f"clips of {size_name(size)} are sampled with {settings}")
    return found


def _asking_for(settings: SampleSettings) -> str:
    """What `prepare` must be given to encode the negative prompt, whatever its file says: a run's record may have what
    the file no longer has. Without guidance it would encode none."""
    negative = settings.negative_prompt
    quoted = yaml.safe_dump(negative, default_style='"', allow_unicode=True, width=math.inf).strip()
    return shlex.join(
        [f"evaluate.negative_prompt={quoted}", f"evaluate.guidance_scale={settings.guidance_scale}"]
    )
