"""Clips of held-out prompts: how they are sampled, and what training shows of them on the way."""

from __future__ import annotations

import contextlib
import functools
import math
import shlex
from dataclasses import asdict

import torch
import yaml

from pgdpo.console import say_once
from pgdpo.data.buckets import size_name
from pgdpo.data.files import write_json
from pgdpo.data.prepared import PreparedPairs, stack_conditioning, to_device
from pgdpo.data.video import write_video
from pgdpo.errors import InputError
from pgdpo.models.family import Family
from pgdpo.models.guidance import negative_branch, without_adapter
from pgdpo.models.held import free_memory
from pgdpo.settings import Config, SampleSettings, sample_settings
from pgdpo.training import agreement
from pgdpo.training.engine import deepspeed_config
from pgdpo.training.policy import base_dtype, open_pairs, require_images
from pgdpo.training.trackers import Trackers
from pgdpo.training.zero_init import gather_in_forward, load_sharded
from pgdpo_kernels import pair_noise


@torch.no_grad()
def sample_latents(
    config: Config,
    family: Family,
    transformer: torch.nn.Module,
    data: PreparedPairs,
    jobs: list[tuple[int, int]],
    device: torch.device,
) -> torch.Tensor:
    """Latents `[N, C, F, H, W]` for `jobs`, all of one size: (index of the pair whose prompt it is, seed of the initial
    noise)."""
    settings = sample_settings(config.evaluate, family.card, data.size_of(jobs[0][0])[1:])
    items = [data[index, seed] for index, seed in jobs]
    noise = pair_noise(
        (len(jobs), *items[0]["chosen"].shape),
        seed=config.evaluate.seed,
        pair_ids=torch.tensor([item["pair_id"] for item in items], device=device),
        draw=torch.tensor([item["draw"] for item in items], device=device),
        device=device,
        dtype=torch.float32,
    )
    conditioning = [item["conditioning"] for item in items]
    negative = [item | data.text(settings.negative_prompt) for item in conditioning]
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        return family.sample(
            transformer,
            noise,
            to_device(stack_conditioning(conditioning), device),
            to_device(stack_conditioning(negative), device),
            **settings.told,
        )


def how_sampled(config: Config, family: Family, data: PreparedPairs) -> dict[str, SampleSettings]:
    """How clips of each size of `data` are sampled, by the size's name. Says it.

    Raises InputError where the negative prompt was not prepared.
    """
    found = {}
    for bucket in data.buckets:
        size = data.size_of(bucket[0])
        found[size_name(size)] = settings = sample_settings(config.evaluate, family.card, size[1:])
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


class Validation:
    """Every `evaluate.every` steps: clips of the first held-out prompts, from the same noise each time.

    They go to `run_dir/validation/step-<n>/` and to TensorBoard. Every rank samples the same (ZeRO-3 needs all of them
    in each forward), the main rank decodes and writes. Opening them loads no weights; what sampling and decoding load,
    another expert and the VAE, is held for as long as they take.
    """

    def __init__(self, config: Config, family: Family, device: torch.device) -> None:
        self._config, self._family, self._device = config, family, device
        self._every = config.evaluate.every
        if self._every is None:
            return
        self._data = open_pairs(config, "held_out")
        require_images(self._data, family)
        if family.other_folder is not None and config.train.zero_stage == 3:
            family.open_other = functools.partial(_sharded_expert, config, family, device)
        self._settings = how_sampled(config, family, self._data)
        self._jobs = [(index, 0) for index in range(min(config.evaluate.every_prompts, len(self._data)))]

    def show(self, step: int, transformer: torch.nn.Module, log: Trackers | None) -> None:
        """Sample and write, if `step` is one of those; `log` is the main rank's."""
        if self._every is None or step % self._every:
            return
        was_training = transformer.training
        transformer.eval()
        try:
            latents = [self._sample(transformer, job) for job in self._jobs]
        finally:
            transformer.train(was_training)
            self._family.release()
        if log:
            self._write(step, latents, log)
        free_memory()  # the VAE's too
        agreement.meet()

    def _sample(self, transformer: torch.nn.Module, job: tuple[int, int]) -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            if self._config.trains_negative_branch:
                stack.enter_context(negative_branch(transformer, lambda: without_adapter(transformer), 1))
            return sample_latents(self._config, self._family, transformer, self._data, [job], self._device)[0]

    def _write(self, step: int, latents: list[torch.Tensor], log: Trackers) -> None:
        decoder = self._family.load_encoders(self._device)
        folder, fps = self._config.run_dir / "validation" / f"step-{step:08d}", self._config.written_fps
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "sampling.json", {size: asdict(how) for size, how in self._settings.items()})
        for (index, _), clip in zip(self._jobs, latents, strict=True):
            frames = decoder.decode_video(clip.cpu())
            write_video(folder / f"{index:03d}.mp4", frames, fps)
            prompt = self._data.rows[index]["prompt"]
            log.clip(step, f"validation/{index:03d} {prompt}"[:80], frames, fps)


def _sharded_expert(config: Config, family: Family, device: torch.device) -> torch.nn.Module:
    """Under ZeRO-3, the expert that doesn't train: like the policy, each rank holds its share alone. All ranks ask for
    it at one time."""
    other = load_sharded(
        family,
        dtype=base_dtype(config),
        device=device,
        deepspeed_config=deepspeed_config(config.train),
        folder=family.other_folder,
    )
    gather_in_forward(other)
    family.adapt_other(other)
    return other.eval().requires_grad_(False)
