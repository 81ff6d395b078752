"""Clips of held-out prompts that training shows on its way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.export import load_trained
from pgdpo.checkpoints.published import latest_checkpoint
from pgdpo.checkpoints.runs import Run
from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.diffusion.streams import Latents, each
from pgdpo.engine.engine import deepspeed_config
from pgdpo.engine.parallel import Ranks, arrange_ranks
from pgdpo.engine.policy import base_dtype
from pgdpo.engine.zero.load import share_expert
from pgdpo.files.atomic import write_json
from pgdpo.guards.signals import StopSignals
from pgdpo.messages.console import is_main_rank
from pgdpo.messages.progress import moved, stage
from pgdpo.models.encoders.decode import decode
from pgdpo.models.family import Family
from pgdpo.models.guidance import without_adapter
from pgdpo.models.weights.held import free_memory
from pgdpo.ranks.agreement import from_main, meet, on_main
from pgdpo.sampling import Sampler, share_of
from pgdpo.sampling.clips import Job
from pgdpo.training.trackers import Trackers
from pgdpo.video import read_video, write_video

SHOWN = "sampling.json"  # how a step's clips were sampled; written when all of them are there


class Clips:
    """Clips of the first held-out prompts, from the same noise each time.

    They go to `run_dir/validation/step-<n>/` and, without their sound, to TensorBoard. The ranks share the prompts, one
    by one; with ZeRO-3 or sequence parallelism they run each forward together. A rank decodes and writes what it
    sampled. Opening them loads no weights; what sampling and decoding load, another expert and the VAE, is held for as
    long as they take.
    """

    def __init__(
        self,
        config: Config,
        family: Family,
        data: PreparedPairs,
        ranks: Ranks,
        other: Config | None = None,
    ) -> None:
        """`other`: the part of the expert that another trainer has; its newest checkpoint is sampled with."""
        self._config, self._family, self._data, self._ranks = config, family, data, ranks
        # Weights that are sharded, or tokens that are shared, want all ranks in every forward.
        self._in_step = config.train.zero_stage == 3 or ranks.degree > 1
        if config.train.zero_stage == 3:
            options = {"dtype": base_dtype(config), "deepspeed_config": deepspeed_config(config.train)}
            share_expert(family, device=ranks.device, **options)
        self._other = other
        self._sampler = Sampler(config, family, self._data, ranks.device)
        self._jobs = [(index, 0) for index in range(min(config.evaluate.every_prompts, len(self._data)))]

    def show(self, step: int, transformer: torch.nn.Module, log: Trackers, signals: StopSignals) -> None:
        """Sample and write what `step` has to show, if it was not shown yet.

        Raises Stopped on all ranks, within a block's or a denoising step's time, if one of them was signalled.
        """
        folder = self._config.run_dir / "validation" / f"step-{step:08d}"
        if from_main((folder / SHOWN).is_file()):
            return
        stage("validation")
        self._take_other()
        was_training = transformer.training
        transformer.eval()
        try:
            with signals.in_step() if self._in_step else signals.apart():
                own = self._sample(transformer)
        finally:
            transformer.train(was_training)
            self._family.release()
        with signals.apart():
            self._write(folder, own)
        free_memory()  # the VAE's too
        stage("validation, waiting for other ranks")
        meet()
        if is_main_rank():
            how = {size: asdict(settings) for size, settings in self._sampler.how.items()}
            write_json(folder / SHOWN, how)
            for index, _ in self._jobs:
                name = f"validation/{index:03d} {self._data.rows[index]['prompt']}"[:80]
                log.clip(step, name, read_video(folder / f"{index:03d}.mp4"), self._config.written_fps)

    def _take_other(self) -> None:
        """Have the other expert as its part's newest checkpoint has it, where it has one."""
        newest = None if self._other is None else on_main(lambda: latest_checkpoint(self._other.run_dir))
        if newest is None:
            return
        run = Run(self._other, newest, self._other.run_dir)
        ranks = arrange_ranks(1, self._ranks.device) if self._config.train.zero_stage == 3 else None
        how = {"forward_only": True, "ranks": ranks}
        self._family.experts.open_other = lambda: load_trained(run, self._ranks.device, **how)[1]

    def _sample(self, transformer: torch.nn.Module) -> list[tuple[Job, Latents]]:
        """This rank's share of the jobs, with their latents."""
        found, ranks = [], self._ranks
        for job, own in share_of(self._jobs, ranks.data_rank, ranks.data_size, in_step=self._in_step):
            moved(f"sampling prompt {job[0] + 1} of {len(self._jobs)}")
            sampled = self._sampler.sample(transformer, [job], lambda: without_adapter(transformer))
            latents = each(lambda clips: clips[0], sampled)
            if own and dist.get_rank() % ranks.degree == 0:  # of those that share its tokens, one
                found.append((job, latents))
        return found

    def _write(self, folder: Path, own: list[tuple[Job, Latents]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        decoder = self._family.load_encoders(self._ranks.device)
        for (index, _), latents in own:
            frames, sound = decode(decoder, latents)
            write_video(folder / f"{index:03d}.mp4", frames, self._config.written_fps, sound=sound)
            moved(f"decoded prompt {index + 1} of {len(self._jobs)}")
